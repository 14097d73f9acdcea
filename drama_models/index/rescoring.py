"""Vectors that stay on disk while an index of few bits finds candidates, which are then scored again with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from drama_models.arrays import write_array
from drama_models.index.rows import NONE, Rows, best, padded
from drama_models.quantisation import columns, dequantise, quantise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.index.kinds import StoredPrecision
    from drama_models.index.rows import Hits
    from drama_models.quantisation import EmbeddingPrecision

RANGES = "ranges.npy"


class RescoringRows:
    """Vectors that candidates are scored again with: float32, or eight bits with the ranges of the columns.

    Args:
        rows: codes.
        precision: "float32" or "uint8".
        ranges: (2, dim), for eight bits.
    """

    def __init__(self, rows: Rows, precision: EmbeddingPrecision, ranges: NDArray[np.float32] | None) -> None:
        self.rows, self.precision, self.ranges = rows, precision, ranges

    @classmethod
    def empty(cls, precision: StoredPrecision, dim: int, ranges: NDArray[np.float32] | None) -> RescoringRows | None:
        """For vectors to come; None where nothing is to be kept."""
        if precision == "none":
            return None
        return cls(Rows(columns(precision, dim), precision), precision, ranges if precision == "uint8" else None)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors, (n, dim)."""
        self.rows.append(vectors if self.precision == "float32" else quantise(vectors, self.precision, self.ranges))

    def vectors(self, numbers: NDArray[np.integer]) -> NDArray[np.float32]:
        """Vectors by their row, (len(numbers), dim)."""
        return dequantise(self.rows.gather(numbers), self.precision, ranges=self.ranges)

    def search(self, queries: NDArray[np.float32], candidates: NDArray[np.int64], k: int) -> Hits:
        """The best k of each query's candidates; row -1 stands for none."""
        scores, rows = [], []
        for query, numbers in zip(queries, candidates, strict=True):
            there = np.sort(numbers[numbers != NONE])
            products = self.vectors(there) @ query
            chosen = best(products, k)
            scores.append(products[chosen])
            rows.append(there[chosen])
        return padded(scores, rows, k)

    def write(self, folder: Path, alive: NDArray[np.bool_] | None) -> None:
        """Write the living rows and the ranges."""
        self.rows.write(folder, alive)
        if self.ranges is not None:
            write_array(folder / RANGES, self.ranges)

    @classmethod
    def read(cls, folder: Path, precision: StoredPrecision, dim: int) -> RescoringRows | None:
        """Memory-map what `write` wrote; None where nothing was kept."""
        if precision == "none":
            return None
        ranges = np.load(folder / RANGES, allow_pickle=False) if precision == "uint8" else None
        return cls(Rows.read(folder, columns(precision, dim), precision), precision, ranges)
