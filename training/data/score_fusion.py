"""Fused supervision: several teachers' lists made one, once, on disk, by adding their normalised scores.

One of DRAGON's alternatives to progressive supervision (arXiv 2302.07452, section 4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from training.data.documents import cache_name
from training.data.rankings import SCHEMA, Rankings, write_list_of_query
from training.data.shards import Place, build_shards

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from training.data.documents import TextStore

QUERIES_PER_BLOCK = 1 << 13  # fused at a time


def fuse(
    teachers: Sequence[Rankings], weights: Sequence[float], queries: TextStore, cache: Path, *, normalisation: str
) -> Rankings:
    """One list a query from several teachers: the sum of their weighted, normalised scores, best first.

    A document that a teacher's list lacks gets the lowest score of that list; a teacher without a list for the query
    does not count. Documents with equal sums are in collection order.

    Args:
        teachers: their lists.
        weights: of their scores, in the same order.
        queries: that the lists belong to.
        cache: folder for the fused lists, built on first use.
        normalisation: `min-max` puts each list on 0 to 1 (a list of equal scores on 1); `none` takes them as they are.
    """
    folder = cache / cache_name(
        "fused", *(teacher.folder for teacher in teachers), settings=[list(weights), normalisation]
    )
    fingerprint = {"teachers": [teacher.fingerprint for teacher in teachers]}

    def shards(start: Place) -> Iterator[tuple[Place, pa.RecordBatch]]:
        for number in range(start.offset, len(queries), QUERIES_PER_BLOCK):
            rows = np.arange(number, min(number + QUERIES_PER_BLOCK, len(queries)))
            fused = _fuse_block(rows, teachers, weights, normalisation)
            if len(fused):
                yield Place(number + len(rows)), fused

    build_shards(folder, fingerprint, shards, write_list_of_query(folder, queries), source=queries.source)
    return Rankings(folder, fingerprint)


def _fuse_block(
    rows: NDArray[np.int64], teachers: Sequence[Rankings], weights: Sequence[float], normalisation: str
) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {"query": [], "line": [], "documents": [], "scores": []}
    covered = [teacher.covers(rows) for teacher in teachers]
    lists = [dict(zip(rows[mask].tolist(), zip(*teacher.ranked(rows[mask]), strict=True), strict=True))
             for teacher, mask in zip(teachers, covered, strict=True)]  # fmt: skip
    for row in rows[np.logical_or.reduce(covered)].tolist():
        mine = [(weight, *found[row]) for weight, found in zip(weights, lists, strict=True) if row in found]
        documents = np.unique(np.concatenate([ids for _, ids, _ in mine]))
        total = np.zeros(len(documents))
        for weight, ids, scores in mine:
            normalised = normalise_scores(scores.astype(np.float64), normalisation)
            lowest = 0.0 if normalisation == "min-max" else normalised.min()
            own = np.full(len(documents), lowest)
            own[np.searchsorted(documents, ids)] = normalised
            total += weight * own
        order = np.argsort(-total, kind="stable")
        for name, value in zip(columns, (row, 0, documents[order], total[order]), strict=True):
            columns[name].append(value)
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def normalise_scores(scores: NDArray[np.float64], normalisation: str) -> NDArray[np.float64]:
    """A list's scores before they are added to those of others; `min-max` gives 0 to 1, equal scores give 1."""
    if normalisation == "none":
        return scores
    lowest, highest = scores.min(), scores.max()
    return (scores - lowest) / (highest - lowest) if highest > lowest else np.ones_like(scores)
