"""Training examples from the documents alone: no question, no label, nothing from the test packages.

Three kinds of query, each against the document it was cropped from (as DRAMA crops sentences, arXiv 2502.18460): the
summary line, a sentence, and the head of a section. Hard negatives come from BM25. Documents of the packages that are
tested on appear neither as queries nor as positives nor as negatives.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from demo.collect import TEST_PACKAGES, package_of
from drama_models.bm25 import BM25
from drama_models.collection import Collection, Document
from training.augment.mine import mine_negatives
from training.data.examples import TrainingExample, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
SECTION = re.compile(r"^(?P<head>[^\n]{4,80})\n(?:-{4,}|={4,}|~{4,})\s*\n", re.MULTILINE)
STANDARD_SECTIONS = {
    "parameters", "other parameters", "returns", "return", "yields", "raises", "receives", "warns", "warnings",
    "see also", "note", "notes", "references", "example", "examples", "attributes", "methods", "explanation",
}  # fmt: skip
MIN_WORDS, MAX_WORDS = 4, 30  # of a query
KEPT_CHARACTERS = 800  # of a training document: more than any training length reads
FIRST_RANK, LAST_RANK = 3, 20  # of BM25's list: the very top often answers the query as well


def write_training_data(collection: Path, out: Path, *, count: int, seed: int) -> dict[str, Any]:
    """Write `out/collection` (documents to train on) and `out/examples.jsonl`.

    Args:
        collection: the demo's collection.
        out: existing folder.
        count: examples to make, at most.
        seed: of the draw of queries.

    Returns:
        Number of examples by kind, and of documents.
    """
    documents = [
        Document(document.id, document.title, document.text[:KEPT_CHARACTERS])
        for document in Collection(collection).documents()
        if package_of(document.id) not in TEST_PACKAGES
    ]
    generator = np.random.default_rng(seed)
    drawn: list[tuple[str, str, str]] = []
    for position in generator.permutation(len(documents)):
        found = list(queries_of(documents[position]))
        if found:
            drawn.append((documents[position].id, *found[generator.integers(len(found))]))
        if len(drawn) == count:
            break
    Collection.write(out / "collection", ({"_id": row.id, "title": row.title, "text": row.text} for row in documents))
    examples = (
        TrainingExample(query_id=f"{name}#{kind}", query=query, positive_ids=[name], source="crop", task=kind)
        for name, kind, query in drawn
    )
    teacher = BM25((row.id, row.content) for row in documents)
    mined = mine_negatives(examples, teacher, name="bm25", first_rank=FIRST_RANK, last_rank=LAST_RANK)
    written = write_examples(out / "examples.jsonl", mined)
    kinds = Counter(kind for _, kind, _ in drawn)
    return {"examples": written, "documents": len(documents)} | dict(sorted(kinds.items()))


def queries_of(document: Document) -> Iterator[tuple[str, str]]:
    """Kind and text of every query that a document gives."""
    summary, _, body = document.text.strip().partition("\n\n")
    summary = " ".join(summary.split())
    if _fits(summary) and len(body.split()) >= MIN_WORDS:
        yield "summary", summary.rstrip(".")
    prose = body.partition("\nParameters\n")[0]
    for sentence in SENTENCE_END.split(" ".join(prose.split())):
        if _fits(sentence) and ">>>" not in sentence:
            yield "sentence", sentence
    for section in SECTION.finditer(document.text):
        head = section["head"].strip()
        if head.lower() not in STANDARD_SECTIONS and len(head.split()) >= 2:
            yield "section", head


def _fits(query: str) -> bool:
    return MIN_WORDS <= len(query.split()) <= MAX_WORDS
