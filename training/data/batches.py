"""One step's texts: what a batch holds before it is tokenised, and how planned rows become it.

A query's documents are consecutive, the positive first, as in DRAGON's trainer; rows that a query lacks are absent:
they fill the batch and no loss counts them. Texts carry no prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from training.data.datasets import Task, TrainingDataset

# B = queries, N = documents of a query


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """What one step of one process sees."""

    task: Task
    """Of the dataset: name, in_batch_negatives, instruction."""
    dataset: str
    """Its name in the recipe."""
    query_ids: list[str]
    """B."""
    queries: list[str]
    """B."""
    document_ids: list[str]
    """B * N, each query's documents in turn; "" where absent."""
    documents: list[str]
    """B * N; "" where absent."""
    positives: list[int]
    """B: place of each query's positive among the documents."""
    absent: list[bool]
    """B * N: places that only fill the batch."""
    scores: list[list[float]]
    """B x N teacher scores of the own documents, NaN where there is none."""
    categories: list[str] = field(default_factory=list)
    """B: what each query belongs to (clustering), "" where it does not say; empty stands for none."""


@dataclass(frozen=True, kw_only=True)
class PlannedBatch:
    """The same in rows: which queries and documents, before any text is read."""

    queries: NDArray[np.int64]
    """(B,) rows of the dataset."""
    documents: NDArray[np.int64]
    """(B, N) rows of its collection, the positive first; -1 behind them where a query has fewer."""
    scores: NDArray[np.float32]
    """(B, N) teacher scores, NaN where there is none."""

    def rank_slice(self, rank: int, world_size: int) -> PlannedBatch:
        """The contiguous part of one of several processes; B must be a multiple of their number."""
        share = len(self.queries) // world_size
        mine = slice(rank * share, (rank + 1) * share)
        return PlannedBatch(queries=self.queries[mine], documents=self.documents[mine], scores=self.scores[mine])


def read_texts(dataset: TrainingDataset, planned: PlannedBatch) -> TextBatch:
    """The texts of planned rows."""
    present = planned.documents >= 0  # (B, N)
    rows, sizes = planned.documents[present], present.sum(axis=1)
    ids = dataset.documents.ids(rows)
    texts = dataset.documents.contents(rows, dataset.title_separator)
    document_ids, _, _ = lay_out(_grouped(ids, sizes), present.shape[1], "")
    documents, positives, absent = lay_out(_grouped(texts, sizes), present.shape[1], "")
    return TextBatch(
        task=dataset.task,
        dataset=dataset.name,
        query_ids=dataset.labels.query_ids(planned.queries),
        queries=dataset.labels.queries(planned.queries),
        document_ids=document_ids,
        documents=documents,
        positives=positives,
        absent=absent,
        scores=planned.scores.tolist(),
        categories=dataset.labels.categories(planned.queries),
    )


def _grouped(values: list[str], sizes: NDArray[np.int64]) -> Iterator[list[str]]:
    """The values of each query, from those of all queries in a row."""
    remaining = iter(values)
    return (list(islice(remaining, size)) for size in sizes.tolist())


def lay_out(groups: Iterable[Sequence[Any]], group_size: int, filler: Any) -> tuple[list[Any], list[int], list[bool]]:
    """Documents of a batch in a row, groups filled up to one size.

    Args:
        groups: documents of each query, the positive first, at most `group_size`.
        group_size: documents of a query.
        filler: stands where a query has fewer.

    Returns:
        The documents (B * N), the place of each positive (B), and which documents are absent (B * N).
    """
    documents: list[Any] = []
    absent: list[bool] = []
    for group in groups:
        missing = group_size - len(group)
        documents += [*group, *[filler] * missing]
        absent += [*[False] * len(group), *[True] * missing]
    return documents, list(range(0, len(documents), group_size)), absent
