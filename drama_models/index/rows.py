"""Vectors in blocks, memory-mapped or in memory, and exact search over them by one matrix product for each block.

On a processor, NumPy's matrix product is several times faster than faiss's flat index where queries come together, and
not far from it where they come one by one (docs/search.md); it reads vectors from a memory map without a copy. Rows are
numbered in the order they were added.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    Hits = tuple[NDArray[np.float32], NDArray[np.int64]]
    """Scores and rows of each query, both (queries, k), best first; row -1 where there are fewer than k."""

ROWS = "rows"  # what the names of their files begin with
FILE_BYTES = 1 << 30  # of a file of rows
COPIED_BYTES = 1 << 24  # written or read at once
SCORES_AT_ONCE = 1 << 20  # of a block for all queries together: 4 MiB, about what stays in a processor's cache
QUERIES_AT_ONCE = 256
NONE = -1


class Rows:
    """Rows of equal width; memory-mapped ones that cannot be written to are kept as they are, others are copied.

    Args:
        width: numbers in a row.
        dtype: of the numbers.
    """

    def __init__(self, width: int, dtype: DTypeLike) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self._blocks: list[NDArray[Any]] = []
        self._mapped: list[bool] = []

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, (n, width)."""
        mapped = isinstance(rows, np.memmap) and not rows.flags.writeable and rows.dtype == self.dtype
        self._blocks.append(np.asarray(rows) if mapped else np.array(rows, dtype=self.dtype, order="C"))
        self._mapped.append(mapped)
        # blocks in memory halve in size from one to the next, so there are few, and a row is copied few times
        while (
            not any(self._mapped[-2:]) and len(self._blocks) > 1 and 2 * len(self._blocks[-1]) > len(self._blocks[-2])
        ):
            last = self._blocks.pop()
            self._mapped.pop()
            self._blocks[-1] = np.concatenate([self._blocks[-1], last])

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Row number of the first and content of each block; of at most `rows` rows where that is given."""
        start = 0
        for block in self._blocks:
            step = max(rows or len(block), 1)
            for begin in range(0, len(block), step):
                yield start + begin, block[begin : begin + step]
            start += len(block)

    def gather(self, numbers: NDArray[np.integer]) -> NDArray[Any]:
        """Rows by their numbers, (len(numbers), width); of mapped ones only their pages are read."""
        found = np.empty((len(numbers), self.width), dtype=self.dtype)
        bounds = np.cumsum([0, *map(len, self._blocks)])
        for block, (begin, end) in zip(self._blocks, pairwise(bounds), strict=True):
            here = np.flatnonzero((numbers >= begin) & (numbers < end))
            if len(here):
                found[here] = block[numbers[here] - begin]
        return found

    def write(self, folder: Path, kept: NDArray[np.bool_] | None = None) -> None:
        """Write the rows to `rows-00000.npy` and on, of up to 1 GiB each, in constant memory.

        Args:
            folder: to write into.
            kept: (rows,), False for those to leave out.
        """
        total = len(self) if kept is None else int(kept.sum())
        row_bytes = max(self.width * self.dtype.itemsize, 1)
        a_file, at_once = max(FILE_BYTES // row_bytes, 1), max(COPIED_BYTES // row_bytes, 1)
        pieces = (
            block if kept is None else block[kept[start : start + len(block)]] for start, block in self.blocks(at_once)
        )
        rest = np.empty((0, self.width), dtype=self.dtype)
        for number, begin in enumerate(range(0, total, a_file)):
            wanted = min(a_file, total - begin)
            with (folder / f"{ROWS}-{number:05}.npy").open("wb") as file:
                header = {"descr": self.dtype.str, "fortran_order": False, "shape": (wanted, self.width)}
                np.lib.format.write_array_header_1_0(file, header)
                while wanted:
                    rest = rest if len(rest) else next(pieces)
                    file.write(np.ascontiguousarray(rest[:wanted]).tobytes())
                    wanted, rest = wanted - len(rest[:wanted]), rest[wanted:]

    @classmethod
    def read(cls, folder: Path, width: int, dtype: DTypeLike) -> Rows:
        """Memory-map the files that `write` made in a folder.

        Raises:
            ValueError: rows of another width or kind of number.
        """
        rows = cls(width, dtype)
        for path in sorted(folder.glob(f"{ROWS}-*.npy")):
            block = np.load(path, mmap_mode="r", allow_pickle=False)
            if block.shape[1:] != (width,) or block.dtype != rows.dtype:
                raise ValueError(f"{path.name} holds {block.dtype} {block.shape}, expected {rows.dtype} (n, {width}).")
            rows.append(block)
        return rows


def nearest(rows: Rows, queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_] | None = None) -> Hits:
    """Rows with the largest inner product, exactly; ties go to the earlier row.

    Args:
        rows: float32.
        queries: (n, width), float32.
        k: hits for each query.
        alive: (rows,), False for rows that were removed.
    """
    parts = [
        _nearest(rows, queries[start : start + QUERIES_AT_ONCE], k, alive)
        for start in range(0, len(queries), QUERIES_AT_ONCE)
    ]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])


def best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the k largest of a row of scores, best first; ties go to the earlier position."""
    if k < len(scores):
        least = np.partition(scores, -k)[-k]
        above = np.flatnonzero(scores > least)
        tied = np.flatnonzero(scores == least)[: k - len(above)]
        chosen = np.concatenate([above, tied])
    else:
        chosen = np.arange(len(scores))
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def _nearest(rows: Rows, queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_] | None) -> Hits:
    """The k best so far of each query, and a look at what beats its last one in each further block."""
    top_scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(queries)
    top_rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(queries)
    least = np.full((len(queries), 1), -np.inf, dtype=np.float32)
    for start, block in rows.blocks(max(SCORES_AT_ONCE // len(queries), 1)):
        scores = queries @ block.T  # (queries, rows of the block)
        if alive is not None:
            scores[:, ~alive[start : start + len(block)]] = -np.inf
        better = scores > least
        for query in np.flatnonzero(better.any(axis=1)):
            there = np.flatnonzero(better[query])
            merged = np.concatenate([top_scores[query], scores[query, there]])
            kept = best(merged, k)
            top_scores[query] = merged[kept]
            top_rows[query] = np.concatenate([top_rows[query], start + there])[kept]
            if len(kept) == k:
                least[query] = merged[kept[-1]]
    return padded(top_scores, top_rows, k)


def padded(scores: Sequence[NDArray[np.float32]], rows: Sequence[NDArray[np.int64]], k: int) -> Hits:
    """Hits of each query as two matrices, filled up with row -1."""
    all_scores, all_rows = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), NONE, np.int64)
    for query, (its_scores, its_rows) in enumerate(zip(scores, rows, strict=True)):
        all_scores[query, : len(its_rows)], all_rows[query, : len(its_rows)] = its_scores, its_rows
    return all_scores, all_rows
