"""What the student learns the teacher's embeddings of: short texts of four kinds.

All of it is text that the environment holds anyway: the documentation, and the comments in the source files, whose
English is closer to how people ask. Packages that the test questions are about give nothing
(`demo.collect.TEST_PACKAGES`), and no question of `demo/questions` is read here.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from demo.collect import TEST_PACKAGES, package_of
from demo.environment import installed_packages
from demo.public_names import SKIPPED_FOLDERS
from demo.source_text import comments
from demo.train_queries import queries_of
from drama_models.collection import Collection
from drama_models.folders import atomic_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from drama_models.collection import Document

TAUGHT_SHARES = {"summary": 0.2, "sentence": 0.25, "comment": 0.25, "head": 0.3}  # of the texts for the teacher
SHORT_WORDS, HEAD_WORDS = 24, 40  # of a text for the teacher: its time grows with their number
MIN_LETTERS = 0.8  # share of letters and spaces in a comment: the rest is code put out of use
BOILERPLATE = ("license", "copyright")


def training_documents(collection: Path) -> list[Document]:
    """Documents of the packages that may teach."""
    return [row for row in Collection(collection).documents() if package_of(row.id) not in TEST_PACKAGES]


def environment_comments() -> list[str]:
    """Comments of the installed packages that may teach, each once, in file order."""
    found: dict[str, None] = {}
    for package in installed_packages():
        if package.name in TEST_PACKAGES:
            continue
        for path in sorted(package.root.rglob("*.py")):
            if SKIPPED_FOLDERS & set(path.relative_to(package.root).parts[:-1]):
                continue
            for comment in comments(path.read_text(encoding="utf-8", errors="replace")):
                if _is_prose(comment):
                    found.setdefault(first_words(comment, SHORT_WORDS))
    return list(found)


def texts_to_teach(documents: Sequence[Document], comment_texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Short texts of four kinds in fixed shares, mixed, so that any first part of them is a fair draw."""
    pools: dict[str, list[str]] = {"summary": [], "sentence": [], "comment": list(comment_texts), "head": []}
    for document in documents:
        pools["head"].append(first_words(document.content, HEAD_WORDS))
        for kind, query in queries_of(document):
            pools["sentence" if kind == "sentence" else "summary"].append(first_words(query, SHORT_WORDS))
    generator = random.Random(seed)  # noqa: S311 - no secret
    chosen: list[str] = []
    for kind, share in TAUGHT_SHARES.items():
        generator.shuffle(pools[kind])
        chosen += pools[kind][: round(share * count)]
    generator.shuffle(chosen)
    return chosen


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """JSON lines of `text`."""
    with atomic_file(path) as partial:
        partial.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def read_texts(path: Path) -> list[str]:
    """What `write_texts` wrote."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def first_words(text: str, count: int) -> str:
    """The text's first words, spaces made single."""
    return " ".join(text.split()[:count])


def _is_prose(comment: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in comment)
    return letters >= MIN_LETTERS * len(comment) and not any(word in comment.lower() for word in BOILERPLATE)
