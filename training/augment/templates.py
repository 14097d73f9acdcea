"""Prompts as files that anyone may edit: `prompts/NAME.txt`, with parts for the system, one example, and the user.

    === system
    === example     (optional) how one worked example looks, where the prompt has any
    === user

`$passage`, `$query` and other names of this kind are filled in once; a `$` in a document means nothing. A folder of
one's own may replace single files. Worked examples are lines of `examples.jsonl`: a passage, and a query of each kind.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from drama_models.errors import RecipeError
from training.augment.untrusted import delimited

if TYPE_CHECKING:
    from collections.abc import Mapping

SHIPPED = Path(__file__).parent / "prompts"
PART = re.compile(r"^=== *(system|example|user) *$\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was read."""

    path: Path
    system: str
    example: str
    """Empty where the prompt has no worked examples."""
    user: str

    def messages(self, values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
        """Role and content of each turn.

        Args:
            values: for the names in the template, such as `passage`.

        Raises:
            RecipeError: the template has a name that is not among them.
        """
        return tuple(
            (role, self._filled(part, values)) for role, part in (("system", self.system), ("user", self.user)) if part
        )

    def with_examples(self, examples: list[dict[str, str]], kind: str, passage: str) -> tuple[tuple[str, str], ...]:
        """The turns for one passage behind worked examples."""
        shown = [
            self._filled(self.example, {"passage": delimited(each["passage"]), "query": each[kind]})
            for each in examples
        ]
        return self.messages({"examples": "\n\n".join(shown), "passage": passage})

    def _filled(self, part: str, values: Mapping[str, object]) -> str:
        try:
            return Template(part).substitute(values)
        except (KeyError, ValueError) as error:
            names = ", ".join(f"${name}" for name in values)
            raise RecipeError(f"{self.path}: {error} cannot be filled in; use {names}, and $$ for a dollar.") from None


def load_prompt(name: str, folder: Path | None = None) -> Prompt:
    """The prompt of a name: the user's file where there is one, else the shipped one.

    Raises:
        RecipeError: no such prompt, or a file without the parts.
    """
    path = _find(f"{name}.txt", folder)
    pieces = PART.split(_text(path))
    parts = dict(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    if not parts.get("user"):
        raise RecipeError(f"{path} must have a part that starts with the line `=== user`.")
    return Prompt(path, parts.get("system", ""), parts.get("example", ""), parts["user"])


def load_examples(kind: str, folder: Path | None = None) -> list[dict[str, str]]:
    """Worked examples that have a query of this kind.

    Args:
        kind: such as "question"; "drama" has a file of its own.
        folder: of the user.

    Raises:
        RecipeError: a broken line, or none with a query of this kind.
    """
    path = _find("drama-examples.jsonl" if kind == "drama" else "examples.jsonl", folder)
    examples = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path}, line {number}: not valid JSON ({error}); write one object a line.") from None
        if isinstance(record, dict) and {"passage", kind} <= record.keys():
            examples.append({key: str(value) for key, value in record.items()})
    if not examples:
        raise RecipeError(f"{path} has no line with `passage` and `{kind}`; add one, or use the kind search-zero-shot.")
    return examples


def draw_examples(examples: list[dict[str, str]], count: int, seed: str) -> list[dict[str, str]]:
    """Some of the examples in random order; the same for the same seed."""
    return random.Random(seed).sample(examples, min(count, len(examples)))  # noqa: S311


def show_prompts(folder: Path | None = None) -> str:
    """All prompts with the paths of their files, for reading and copying."""
    paths = sorted({_find(path.name, folder) for path in SHIPPED.iterdir()}, key=lambda path: path.name)
    return "\n\n".join(f"--- {path}\n{_text(path).strip()}" for path in paths)


def _text(path: Path) -> str:
    """What a file holds.

    Raises:
        RecipeError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {number}: not text in UTF-8; save the file as such.") from None


def _find(name: str, folder: Path | None) -> Path:
    if folder is not None and not any((folder / path.name).is_file() for path in SHIPPED.iterdir()):
        raise RecipeError(
            f"{folder} is no folder of prompts: it has no file that a shipped prompt is called, such as question.txt; "
            "copy those that you want to change from `python -m training augment --show-prompts`."
        )
    for place in (folder, SHIPPED):
        if place is not None and (place / name).is_file():
            return place / name
    known = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.txt")))
    raise RecipeError(f"There is no prompt {name}; choose one of {known}, or add the file to your prompts folder.")
