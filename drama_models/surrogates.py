r"""Lone surrogates, which JSON can write (`\ud800`) and no file can hold, are read as U+FFFD everywhere.

Every file of texts goes through here where it is read, so that ids and texts are the same in all that is made of them.
A surrogate pair is a character, and is joined.
"""

from __future__ import annotations

from typing import Any


def storable(text: str) -> str:
    """The text, surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    return text if text.isascii() else encoded(text).decode()


def encoded(text: str) -> bytes:
    """UTF-8 of `storable`."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def storable_json(value: Any) -> Any:
    """A value that JSON gave, with `storable` strings and keys."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable_json(item) for key, item in value.items()}
    return value
