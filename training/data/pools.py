"""Label pools: for each query, the documents that may be its positive, and those that may be its negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Documents by row, one array a query, with the teacher's scores (NaN where it gave none) beside them."""

    positives: list[NDArray[np.int64]]
    negatives: list[NDArray[np.int64]]
    positive_scores: list[NDArray[Any]]
    negative_scores: list[NDArray[Any]]


class LabelSource(Protocol):
    """Queries with label pools: `ExampleStore`, or `RankedQueries` over the runs of teachers."""

    def __len__(self) -> int: ...

    def query_ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Id of each query."""
        ...

    def queries(self, rows: NDArray[np.int64]) -> list[str]:
        """Text of each query, without a prompt."""
        ...

    def categories(self, rows: NDArray[np.int64]) -> list[str]:
        """What each query belongs to, where queries have categories; else ""."""
        ...

    def query_hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Equal where two queries have the same text."""
        ...

    def check_lists(self) -> None:
        """Raises a CollectionError for a query whose labels are no list that can teach a distribution."""
        ...

    def pools(self, rows: NDArray[np.int64], iteration: int = 1, *key: int) -> Pools:
        """Labels of each query in an iteration; `key` decides the draw where there are several sources."""
        ...
