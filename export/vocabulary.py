"""Byte-pair vocabularies cut down: which tokens stay, and the tokenizer.json that has them alone.

A byte-pair vocabulary can be cut without changing the texts it still covers: a kept token keeps every token that any of
its merges is made of, so a text whose tokens are all kept is merged by the same merges in the same order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import regex
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Iterable

BYTES = frozenset(ByteLevel.alphabet())
SCRIPTS = {
    "am": "Ethiopic", "ar": "Arabic", "bg": "Cyrillic", "bn": "Bengali", "el": "Greek", "fa": "Arabic",
    "he": "Hebrew", "hi": "Devanagari", "ja": "Han Hiragana Katakana", "ka": "Georgian", "ko": "Hangul",
    "mr": "Devanagari", "ru": "Cyrillic", "sr": "Cyrillic Latin", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "uk": "Cyrillic", "ur": "Arabic", "zh": "Han",
}  # fmt: skip
LATIN = frozenset(  # languages
    "af ca cs da de en es et eu fi fr ga hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tr vi yo".split()  # noqa: SIM905
)


def kept_tokens(tokenizer: dict[str, Any], used: set[int], languages: Iterable[str] = ()) -> list[int]:
    """Ids to keep, ascending: used, of the languages' scripts, special, single bytes, and all that these are made of.

    Args:
        tokenizer: content of a tokenizer.json with a byte-pair model.
        used: ids that occur in the corpus.
        languages: two-letter codes.

    Raises:
        ModelFolderError: another kind of tokenizer.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise ModelFolderError(
            f"This tokenizer is {model.get('type')}, and only byte-pair vocabularies (BPE) can be cut here; "
            "keep the folder as it is."
        )
    vocabulary: dict[str, int] = model["vocab"]
    kept = set(used) | {token["id"] for token in tokenizer.get("added_tokens", [])}
    kept |= {number for token, number in vocabulary.items() if _is_byte(token)}
    scripts = sorted({script for code in languages for script in SCRIPTS.get(code, "Latin").split()})
    if scripts:
        pattern = regex.compile("".join([r"^[\p{Common}\p{Inherited}", *(rf"\p{{{name}}}" for name in scripts), "]*$"]))
        decoder = Tokenizer.from_str(json.dumps(tokenizer)).decoder
        kept |= {
            number
            for token, number in vocabulary.items()
            # parts of characters, which decode to U+FFFD, may belong to any script
            if pattern.match((decoder.decode([token]) if decoder else token).replace("\ufffd", ""))
        }
    parts: dict[str, list[tuple[str, str]]] = {}
    for left, right in map(_pair, model["merges"]):
        parts.setdefault(left + right, []).append((left, right))
    names = {number: token for token, number in vocabulary.items()}
    open_tokens = [names[number] for number in kept if number in names]
    while open_tokens:
        for pair in parts.get(open_tokens.pop(), ()):
            for token in pair:
                if vocabulary[token] not in kept:
                    kept.add(vocabulary[token])
                    open_tokens.append(token)
    return sorted(kept)


def smaller_tokenizer(tokenizer: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    """tokenizer.json with the kept tokens alone, numbered anew in their old order."""
    new = {old: number for number, old in enumerate(kept)}
    model = tokenizer["model"]
    vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
    merges = [
        merge
        for merge in model["merges"]
        if all(part in vocabulary for part in _pair(merge)) and "".join(_pair(merge)) in vocabulary
    ]
    added = [token | {"id": new[token["id"]]} for token in tokenizer.get("added_tokens", [])]
    changed = tokenizer | {"model": model | {"vocab": vocabulary, "merges": merges}, "added_tokens": added}
    return _renumbered(changed, new)


def _renumbered(tokenizer: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """The post-processor's own copies of ids, wherever a template or a sequence of processors holds them."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: [new[number] for number in item] if key == "ids" and isinstance(item, list) else walk(item)
            for key, item in value.items()
        }

    return tokenizer | {"post_processor": walk(tokenizer.get("post_processor"))}


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge as tokenizers writes it today, or as it did before 0.20."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte(token: str) -> bool:
    """Whether a token stands for one byte: of the byte-level alphabet, or `<0x41>` for fallback."""
    return token in BYTES or bool(regex.fullmatch(r"<0x[0-9A-F]{2}>", token))
