"""Files mapped into memory, read as arrays or Arrow batches, whose resident pages can be handed back.

The pages of a mapped file that were read count as resident memory until the system needs them elsewhere. Random reads
over a large collection would so fill the memory of a run bit by bit, for no use: `release` hands the pages back (they
stay in the system's cache), and a run's memory stays flat.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray


class MappedFile:
    """A file mapped read-only.

    Args:
        path: of a file that is not empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, dtype: DTypeLike) -> NDArray[Any]:
        """The whole file as a flat array, not copied."""
        return np.frombuffer(self._map, dtype=dtype)

    def batch(self) -> pa.RecordBatch:
        """The only record batch of an Arrow file, not copied."""
        return pa.ipc.open_file(pa.py_buffer(self._map)).get_batch(0)

    def release(self) -> None:
        """Hand the resident pages back; what is read again is mapped again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)


class MappedArray:
    """A flat array in a file of its own, read at random in bounded resident memory.

    Args:
        path: raw values, without a header.
        dtype: of the values.
    """

    RELEASE_AFTER = 1 << 16
    """Values gathered before the pages are handed back."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._file = MappedFile(path)
        self.values = self._file.array(dtype)
        """All values, (n,); not copied."""
        self._gathered = 0

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of the values at `rows`, of the same shape."""
        found = self.values[rows]
        self.count(rows.size)
        return found

    def count(self, reads: int) -> None:
        """Note reads that went around `gather`."""
        self._gathered += reads
        if self._gathered >= self.RELEASE_AFTER:
            self._file.release()
            self._gathered = 0
