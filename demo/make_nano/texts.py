"""What the retriever learns from: pairs of query and document, and short texts for the teacher.

All of it is text that the environment holds anyway: the documentation, and the comments in the source files, whose
English is closer to how people ask. Packages that the test questions are about give nothing
(`demo.collect.TEST_PACKAGES`), and no question of `demo/questions` is read here.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo.collect import TEST_PACKAGES, package_of
from demo.source_text import comments, source_files
from demo.train_queries import queries_of
from drama_models.collection import Collection
from drama_models.folders import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from drama_models.collection import Document

TAUGHT_SHARES = {"summary": 0.24, "sentence": 0.34, "comment": 0.34, "head": 0.08}  # of the texts for the teacher
SHORT_WORDS, HEAD_WORDS = 24, 40  # of a text for the teacher: its time grows with their number
DOCUMENT_WORDS = 120  # of a document in a pair
QUERIES_EACH = 8  # of one document, at most
MIN_LETTERS = 0.8  # share of letters and spaces in a comment: the rest is code put out of use
BOILERPLATE = ("license", "copyright")


@dataclass(frozen=True)
class Pair:
    """A query and the document that it was cut from."""

    query: str
    document: str
    document_id: str


def training_documents(collection: Path) -> list[Document]:
    """Documents of the packages that may teach."""
    return [row for row in Collection(collection).documents() if package_of(row.id) not in TEST_PACKAGES]


def pairs_of(document: Document, generator: random.Random) -> Iterator[Pair]:
    """Summary, sentences and section heads against the document; sometimes name and summary against each other."""
    summary, _, body = document.text.strip().partition("\n\n")
    for kind, query in list(queries_of(document))[:QUERIES_EACH]:
        text = (body or document.text) if kind == "summary" else document.text
        yield Pair(query, f"{document.title} {_first_words(text, DOCUMENT_WORDS)}", document.id)
    if generator.random() < 0.3:
        yield Pair(document.title, _first_words(document.text, DOCUMENT_WORDS), document.id)
    if generator.random() < 0.5:
        yield Pair(_first_words(summary, HEAD_WORDS), document.title, document.id)


def environment_comments() -> list[str]:
    """Comments of the installed packages that may teach, each once, in file order."""
    found: dict[str, None] = {}
    for module, path, _ in source_files():
        if package_of(module) not in TEST_PACKAGES:
            for comment in comments(path.read_text(encoding="utf-8", errors="replace")):
                if _is_prose(comment):
                    found.setdefault(_first_words(comment, SHORT_WORDS))
    return list(found)


def texts_to_teach(documents: Sequence[Document], comment_texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Short texts of four kinds in fixed shares, mixed, so that any first part of them is a fair draw."""
    pools: dict[str, list[str]] = {"summary": [], "sentence": [], "comment": list(comment_texts), "head": []}
    for document in documents:
        pools["head"].append(_first_words(document.content, HEAD_WORDS))
        for kind, query in queries_of(document):
            pools["sentence" if kind == "sentence" else "summary"].append(_first_words(query, SHORT_WORDS))
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


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def _is_prose(comment: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in comment)
    return letters >= MIN_LETTERS * len(comment) and not any(word in comment.lower() for word in BOILERPLATE)
