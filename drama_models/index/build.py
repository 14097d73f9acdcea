"""Stores of each kind, made from vectors or read from files; what a kind learns, it learns here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import IndexKindError
from drama_models.index.kinds import HNSW, IVFPQ, Binary, Flat, Int8
from drama_models.index.rescoring import RescoringRows
from drama_models.index.rows import Rows
from drama_models.index.stores import (
    FAISS_FILE,
    BinaryStore,
    FaissStore,
    FlatStore,
    HNSWStore,
    Int8Store,
    IVFPQStore,
    Store,
)
from drama_models.quantisation import columns

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.index.kinds import Kind

ADDED_AT_ONCE = 65_536
PATTERNS = 256  # of a product quantiser: what one byte of a code chooses from
LEAST_FOR_CENTROID = 39  # vectors that faiss's k-means wants for each centroid
DIGITS = (4, 5, 3, 6, 2, 7, 8, 1)  # coordinates that one byte of a code stands for, the first that divides the size


def build_store(kind: Kind, rows: Rows) -> Store:
    """A store of some vectors; later ones can be added.

    Args:
        kind: with its settings.
        rows: float32 vectors, read block by block.

    Raises:
        IndexKindError: too few vectors to learn from, or a setting that does not suit their size.
    """
    if isinstance(kind, Flat):
        return FlatStore(kind, rows.width, rows)
    if not len(rows) and not isinstance(kind, HNSW):
        raise IndexKindError(f"An index of kind {kind.name} learns from its documents; add some before it is saved.")
    store: FaissStore
    if isinstance(kind, HNSW):
        store = HNSWStore(kind, rows.width, _graph(kind, rows.width))
    elif isinstance(kind, Int8):
        store = Int8Store(kind, rows.width, _scalar_quantiser(rows.width, _ranges(rows)))
    else:
        kept = RescoringRows.empty(kind.rescored_with, rows.width, _ranges(rows))
        if isinstance(kind, Binary):
            store = BinaryStore(kind, rows.width, _bits(rows.width), kept)
        else:
            store = IVFPQStore(kind, rows.width, _trained_lists(kind, rows), kept)
    for _, block in rows.blocks(ADDED_AT_ONCE):
        store.add(block)
    return store


def read_store(kind: Kind, dim: int, folder: Path) -> Store:
    """Memory-map the files of a store. They must have been checked: faiss is not safe against damaged ones.

    Raises:
        ValueError: vectors of another size.
    """
    import faiss

    if isinstance(kind, Flat):
        return FlatStore(kind, dim, Rows.read(folder, dim, np.float32))
    path, mapped = folder / FAISS_FILE, getattr(faiss, "IO_FLAG_MMAP_IFC", 0)  # older ones read it into memory
    if isinstance(kind, Binary):
        kept = RescoringRows.read(folder, kind.rescored_with, dim)
        return BinaryStore(kind, dim, _of_size(faiss.read_index_binary(str(path)), 8 * columns("ubinary", dim)), kept)
    index = _of_size(faiss.read_index(str(path), mapped), dim)
    if isinstance(kind, IVFPQ):
        return IVFPQStore(kind, dim, index, RescoringRows.read(folder, kind.rescored_with, dim), mapped=bool(mapped))
    return (HNSWStore if isinstance(kind, HNSW) else Int8Store)(kind, dim, index, mapped=bool(mapped))


def _of_size(index: Any, dim: int) -> Any:
    if index.d != dim:
        raise ValueError(f"{FAISS_FILE} holds vectors of {index.d} numbers, expected {dim}.")
    return index


def _ranges(rows: Rows) -> NDArray[np.float32]:
    """Lowest and highest value of each column over all rows, (2, width)."""
    ranges = np.zeros((2, rows.width), dtype=np.float32)
    for number, (_, block) in enumerate(rows.blocks(ADDED_AT_ONCE)):
        here = np.stack([block.min(axis=0), block.max(axis=0)])
        ranges = here if number == 0 else np.stack([np.minimum(ranges[0], here[0]), np.maximum(ranges[1], here[1])])
    return ranges


def _scalar_quantiser(dim: int, ranges: NDArray[np.float32]) -> Any:
    import faiss

    index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(ranges))  # two vectors that span the ranges of all
    return index


def _graph(kind: HNSW, dim: int) -> Any:
    import faiss

    index = faiss.IndexHNSWFlat(dim, kind.links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = kind.build_width
    return index


def _bits(dim: int) -> Any:
    import faiss

    return faiss.IndexBinaryFlat(8 * columns("ubinary", dim))


def _trained_lists(kind: IVFPQ, rows: Rows) -> Any:
    """Lists and patterns learned from a seeded sample."""
    import faiss

    least = LEAST_FOR_CENTROID * max(PATTERNS, kind.lists or 1)
    if len(rows) < least:
        raise IndexKindError(
            f"ivf_pq needs at least {least:,} documents to learn its centroids from, and here are {len(rows):,}; "
            "use flat, which is fast enough for so few."
        )
    code_bytes = kind.code_bytes or rows.width // next(digits for digits in DIGITS if rows.width % digits == 0)
    if rows.width % code_bytes:
        raise IndexKindError(f"code_bytes={code_bytes} must divide the vectors' size, {rows.width}.")
    lists = kind.lists or min(round(4 * len(rows) ** 0.5), len(rows) // LEAST_FOR_CENTROID)
    wanted = max(kind.training_vectors, LEAST_FOR_CENTROID * max(lists, PATTERNS))
    chosen = np.random.default_rng(kind.seed).choice(len(rows), min(wanted, len(rows)), replace=False)
    quantiser = faiss.IndexFlatIP(rows.width)
    index = faiss.IndexIVFPQ(quantiser, rows.width, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = kind.seed
    index.train(rows.gather(np.sort(chosen)))
    return index
