"""Quality on the dev questions while training runs: the curve against minutes, and what settings are chosen by.

The pool is smaller than the collection (every answer, and a draw of other documents), so that a measurement takes
seconds; its figures are higher than those over all documents and compare only with each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from drama_models.collection import Collection
from drama_models.evaluation import evaluate
from drama_models.index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OTHERS = 500  # documents beside the answers
HITS = 100


class DevPool:
    """The dev questions over part of the collection.

    Args:
        collection: the demo's collection.
        seed: of the draw of documents.
    """

    def __init__(self, collection: Path, seed: int) -> None:
        opened = Collection(collection)
        self.qrels, queries = opened.qrels("dev"), opened.queries()
        self.queries = [queries[key] for key in self.qrels]
        answers = {key for judged in self.qrels.values() for key in judged}
        documents = list(opened.documents())
        drawn = set(np.random.default_rng(seed).choice(len(documents), min(OTHERS, len(documents)), replace=False))
        pool = [row for number, row in enumerate(documents) if number in drawn or row.id in answers]
        self.ids, self.contents = [row.id for row in pool], [row.content for row in pool]

    def measure(self, encode: Callable[[Sequence[str]], NDArray[np.float32]]) -> dict[str, float]:
        """nDCG@10 and Recall@100 of an encoder whose rows are of unit length."""
        documents = encode(self.contents)
        index = Index(documents.shape[1])
        index.add(self.ids, documents)
        hits = index.search(encode(self.queries), HITS)
        run = {key: dict(found) for key, found in zip(self.qrels, hits, strict=True)}
        return evaluate(run, self.qrels, ("ndcg@10", "recall@100"))
