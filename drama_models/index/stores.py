"""How each kind of index keeps its vectors, finds the nearest of them, and writes them to files.

A store numbers its rows in the order they were added. Removed rows are passed to its search as a mask: faiss gets it as
an IDSelector, the matrix product as scores of minus infinity. Those that can leave them out when they are written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

import numpy as np

from drama_models.index.rows import Rows, nearest
from drama_models.quantisation import dequantise, quantise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.index.kinds import HNSW, IVFPQ, Kind
    from drama_models.index.rescoring import RescoringRows
    from drama_models.index.rows import Hits

    Mask = NDArray[np.bool_]

FAISS_FILE = "index.faiss"


class Store(ABC):
    """Vectors in the form of one kind."""

    shrinks: ClassVar[bool] = True
    """Whether `write` leaves removed rows out; else they stay, masked, until the index is built again."""

    def __init__(self, kind: Kind, dim: int) -> None:
        self.kind, self.dim = kind, dim

    @property
    def ranges(self) -> NDArray[np.float32] | None:
        """Lowest and highest value that each column is kept in, (2, dim); None where there are no such."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Rows, removed ones included."""

    @abstractmethod
    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors, (n, dim)."""

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int, alive: Mask | None) -> Hits:
        """Nearest living rows of each query; `alive`, (rows,), is False for removed ones, None where there are none."""

    @abstractmethod
    def vectors(self) -> NDArray[np.float32]:
        """All rows, (rows, dim), as near to what was added as the kind keeps them."""

    @abstractmethod
    def write(self, folder: Path, alive: Mask | None) -> None:
        """Write the files that `read_store` reads."""


class FlatStore(Store):
    """Float32 rows, each compared with each query."""

    def __init__(self, kind: Kind, dim: int, rows: Rows | None = None) -> None:
        super().__init__(kind, dim)
        self.rows = Rows(dim, np.float32) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors; memory-mapped ones stay where they are."""
        self.rows.append(vectors)

    def search(self, queries: NDArray[np.float32], k: int, alive: Mask | None) -> Hits:
        """Exactly, see `rows.nearest`."""
        return nearest(self.rows, queries, k, alive)

    def vectors(self) -> NDArray[np.float32]:
        """The rows as they were added."""
        return self.rows.gather(np.arange(len(self.rows)))

    def write(self, folder: Path, alive: Mask | None) -> None:
        """Write the living rows."""
        self.rows.write(folder, alive)


class FaissStore(Store):
    """A faiss index, with a memory-mapped file behind it until something is added.

    Args:
        kind: with its settings.
        dim: size of the vectors.
        index: of faiss.
        rescored: vectors that the best are scored again with; None ranks by what faiss says.
        mapped: whether faiss has it memory-mapped.
    """

    def __init__(
        self, kind: Kind, dim: int, index: Any, rescored: RescoringRows | None = None, *, mapped: bool = False
    ) -> None:
        super().__init__(kind, dim)
        self.index, self.rescored, self._mapped = index, rescored, mapped

    @property
    def ranges(self) -> NDArray[np.float32] | None:
        """Those of the rows kept for rescoring."""
        return None if self.rescored is None else self.rescored.ranges

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors."""
        if self._mapped:  # faiss would end the process
            self.index, self._mapped = self._copy(), False
        self.index.add(self._as_stored(vectors))
        if self.rescored is not None:
            self.rescored.add(vectors)

    def search(self, queries: NDArray[np.float32], k: int, alive: Mask | None) -> Hits:
        """By faiss, and by the rows kept for rescoring among its best."""
        living = len(self) if alive is None else int(alive.sum())
        wanted = min(k if self.rescored is None else max(k, getattr(self.kind, "candidates", k)), living)
        scores, rows = self.index.search(self._as_stored(queries), wanted, params=self._parameters(alive, wanted))
        if self.rescored is not None:
            return self.rescored.search(queries, rows, k)
        return self._scores(scores), rows

    def vectors(self) -> NDArray[np.float32]:
        """Of the rows kept for rescoring, else as faiss decodes them."""
        if self.rescored is not None:
            return self.rescored.vectors(np.arange(len(self)))
        return cast("NDArray[np.float32]", self.index.reconstruct_n(0, len(self)))

    def write(self, folder: Path, alive: Mask | None) -> None:
        """Write the faiss index, without removed rows where the kind can, and the rows for rescoring."""
        index = self.index
        if alive is not None and self.shrinks:
            index = self._copy()
            index.remove_ids(_selector(~alive))
        with (folder / FAISS_FILE).open("wb") as file:
            written = _FileOfFaiss(file)
            self._write_faiss(index, _faiss().PyCallbackIOWriter(written.write))
        if written.error is not None:
            raise written.error
        if self.rescored is not None:
            self.rescored.write(folder, alive if self.shrinks else None)

    def _as_stored(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _scores(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        return scores

    def _parameters(self, alive: Mask | None, k: int) -> Any:  # noqa: ARG002 (a graph reads it)
        return None if alive is None else _faiss().SearchParameters(sel=_selector(alive))

    def _write_faiss(self, index: Any, writer: Any) -> None:
        _faiss().write_index(index, writer)

    def _copy(self) -> Any:
        """The index in memory, whether it was mapped or not."""
        return _faiss().deserialize_index(_faiss().serialize_index(self.index))


class Int8Store(FaissStore):
    """faiss's scalar quantiser; its codes are those of `quantise(…, "uint8")`."""

    @property
    def ranges(self) -> NDArray[np.float32]:
        """As faiss keeps them, lowest values and widths."""
        lowest, widths = _faiss().vector_to_array(self.index.sq.trained).reshape(2, self.dim)
        return np.stack([lowest, lowest + widths])


class HNSWStore(FaissStore):
    """faiss's HNSW over float32 vectors; a removed document stays in the graph and is passed by."""

    shrinks = False

    def _parameters(self, alive: Mask | None, k: int) -> Any:
        width = max(cast("HNSW", self.kind).search_width, k)  # with less, faiss fills up with what it came across
        return _faiss().SearchParametersHNSW(efSearch=width, sel=None if alive is None else _selector(alive))


class IVFPQStore(FaissStore):
    """faiss's inverted lists of product-quantised vectors."""

    shrinks = False

    def vectors(self) -> NDArray[np.float32]:
        """Of the rows kept for rescoring, else as faiss decodes them, which needs to know where each one is."""
        if self.rescored is None:
            self.index.make_direct_map()
        return super().vectors()

    def _parameters(self, alive: Mask | None, k: int) -> Any:  # noqa: ARG002 (a graph reads it)
        probes = cast("IVFPQ", self.kind).probes
        return _faiss().SearchParametersIVF(nprobe=probes, sel=None if alive is None else _selector(alive))


class BinaryStore(FaissStore):
    """faiss's exhaustive search over one bit a coordinate, by the number of differing bits."""

    def vectors(self) -> NDArray[np.float32]:
        """Of the rows kept for rescoring, else the signs at length 1."""
        if self.rescored is not None:
            return self.rescored.vectors(np.arange(len(self)))
        bits = _faiss().vector_to_array(self.index.xb).reshape(len(self), -1)
        return dequantise(bits, "ubinary", dim=self.dim)

    def _as_stored(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        return quantise(vectors, "ubinary")

    def _scores(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        """The cosine of two vectors of signs, from the number of bits in which they differ."""
        return (1 - 2 * scores.astype(np.float32) / self.dim).astype(np.float32)

    def _write_faiss(self, index: Any, writer: Any) -> None:
        _faiss().write_index_binary(index, writer)

    def _copy(self) -> Any:
        return _faiss().deserialize_index_binary(_faiss().serialize_index_binary(self.index))


class _FileOfFaiss:
    """A file that faiss writes to through Python: of its own it says nothing when the last part does not fit."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        """Write, or note the first error, which faiss would forget."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            return 0


def _selector(alive: Mask) -> Any:
    return _faiss().IDSelectorBitmap(np.packbits(alive, bitorder="little"))


def _faiss() -> Any:
    """Imported where it is used, and as `Any`, since its type stubs lag behind it."""
    import faiss

    return faiss
