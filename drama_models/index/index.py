"""An index of documents: vectors in one of five kinds, ids, and the model that they belong to.

Vectors that are added wait, memory-mapped if they were, until the first search or save: a kind that learns from them
then learns from all of them. What is added to an index that stands goes into it at once. A removed document is masked,
and left out of the files where its kind can; the others keep it, masked, until the index is built again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.arguments import checked_hits
from drama_models.errors import DimensionError, IndexFolderError, IndexKindError
from drama_models.index.build import build_store
from drama_models.index.folder import IndexFiles, read_index, write_index
from drama_models.index.kinds import chosen_kind, tuned
from drama_models.index.rows import NONE, Rows
from drama_models.surrogates import storable
from drama_models.tokenisation import whole_number
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.bm25 import BM25
    from drama_models.encoder import Encoder
    from drama_models.index.identity import ModelIdentity
    from drama_models.index.kinds import Kind
    from drama_models.index.stores import Store

BEYOND_RANGES = 0.01  # share of numbers
WHOLE_VECTORS = ("flat", "hnsw")  # kinds that keep every number of a vector


class Index:
    """Inner-product search over document vectors.

    Args:
        dim: size of the vectors.
        model: whose vectors they are; None accepts any encoder.
        collection: folder whose texts the ids belong to, for showing hits; optional.
        kind: "flat" (exact), "int8", "binary", "hnsw" or "ivf_pq", or one of `kinds` with its settings; which to
            use when is in docs/search.md.
        settings: of the kind, by name.

    Raises:
        IndexKindError: no such kind or setting.
        DimensionError: `dim` is no whole number above 0.
    """

    def __init__(
        self,
        dim: int,
        model: ModelIdentity | None = None,
        collection: str | None = None,
        *,
        kind: str | Kind = "flat",
        **settings: Any,
    ) -> None:
        size = whole_number(dim)
        if size is None or size < 1:
            raise DimensionError(f"dim={dim!r} must be a whole number above 0, the size of the vectors.")
        self.dim, self.model, self.collection = size, model, collection
        self.kind: Kind = chosen_kind(kind, settings)
        self._keys: list[str | None] = []  # document id of each row, None for a removed one
        self._positions: dict[str, int] = {}
        self._waiting = Rows(size, np.float32)
        self._store: Store | None = None
        self._mask: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def ids(self) -> list[str]:
        """Ids of the documents, in the order they were added."""
        return [key for key in self._keys if key is not None]

    @property
    def removed(self) -> int:
        """Removed documents that still take room; with `hnsw` and `ivf_pq`, until the index is built again."""
        return len(self._keys) - len(self._positions)

    def add(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add documents.

        Args:
            ids: one for each vector, not in the index.
            vectors: (number of documents, dim), float32. Read-only memory maps, such as those of `read_shards`, are not
                copied before the index is searched or saved, and by `flat` not at all.

        Raises:
            ValueError: another number or size of vectors, a vector that is not finite, or an id that is there already
                or is no text.

        A `UserWarning` says when eight bits do not reach: too many numbers beyond those of the first documents.
        """
        unusable = [key for key in ids if not _is_storable(key)]
        if unusable:
            raise ValueError(f"Document id {unusable[0]!r} must be text, without half of a character in it.")
        if np.shape(vectors) != (len(ids), self.dim):
            raise ValueError(f"Expected vectors of shape {(len(ids), self.dim)}, found {np.shape(vectors)}.")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite now
            rows = np.asanyarray(vectors, dtype=np.float32)  # a memory map stays one
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(f"The vector of document {ids[int(finite.argmin())]!r} is not finite; encode it again.")
        known = [key for key in ids if key in self._positions]
        if known or len(set(ids)) != len(ids):
            raise ValueError(
                f"Document id {(known or [_first_repeated(ids)])[0]!r} is in the index already; ids must be unique."
            )
        if self._store is None:
            self._waiting.append(rows)
        else:
            _check_ranges(rows, self._store.ranges)
            self._store.add(np.asarray(rows))
        self._positions |= {key: len(self._keys) + offset for offset, key in enumerate(ids)}
        self._keys.extend(ids)
        self._mask = None

    def remove(self, ids: Iterable[str]) -> None:
        """Remove documents: they are not found any more, and their ids can be added again.

        Args:
            ids: documents in the index; each at most once.

        Raises:
            KeyError: one that is not there; then none is removed.
        """
        leaving = [ids] if isinstance(ids, str) else list(ids)
        absent = [key for key in leaving if key not in self._positions]
        if absent or len(set(leaving)) != len(leaving):
            raise KeyError(f"Document {(absent or [_first_repeated(leaving)])[0]!r} is not in the index, or no longer.")
        for key in leaving:
            self._keys[self._positions.pop(key)] = None
        self._mask = None

    def tune(self, **settings: int) -> None:
        """Change settings of the search: `search_width` of hnsw, `probes` and `candidates` of ivf_pq, and so on.

        Raises:
            IndexKindError: a setting that this kind does not have, or that is part of the finished index.
        """
        self.kind = tuned(self.kind, settings)
        if self._store is not None:
            self._store.kind = self.kind

    def search(self, queries: NDArray[np.float32], k: int = 10) -> list[list[tuple[str, float]]]:
        """Best documents of each query.

        Args:
            queries: (number of queries, dim), float32.
            k: hits for each query; fewer where the index is smaller, or where a kind that is not exact finds no more.

        Returns:
            For each query (document id, inner product), best first. The product is exact with `flat` and `hnsw`, of
            the rounded vectors with the others.

        Raises:
            ValueError: queries of another size, or `k` is no whole number of at least 1.
            IndexKindError: too few documents for a kind that learns from them.
        """
        contiguous = np.ascontiguousarray(queries, dtype=np.float32)
        if np.shape(queries) != (len(contiguous), self.dim):
            raise ValueError(f"Expected queries of shape (n, {self.dim}), found {np.shape(queries)}.")
        k = checked_hits(k)
        if not len(self) or not len(contiguous):
            return [[] for _ in contiguous]
        scores, rows = self._built().search(contiguous, min(k, len(self)), self._alive())
        return [
            [(str(self._keys[row]), float(score)) for row, score in zip(*hits, strict=True) if row != NONE]
            for hits in zip(rows, scores, strict=True)
        ]

    def vectors(self) -> NDArray[np.float32]:
        """The stored vectors in the order of `ids`, (number of documents, dim), float32; as the kind keeps them."""
        alive = self._alive()
        every = self._built().vectors()
        return every if alive is None else every[alive]

    def rebuilt(self, kind: str | Kind | None = None, **settings: Any) -> Index:
        """The same documents in an index of another kind, or of the same without what was removed.

        Raises:
            IndexKindError: this kind keeps rounded vectors, which another one would round again.
        """
        if self.kind.name not in WHOLE_VECTORS:
            raise IndexKindError(
                f"An index of kind {self.kind.name} keeps rounded vectors; build the other one from a folder of "
                f"`drama encode`, or from an index that keeps them whole: {', '.join(WHOLE_VECTORS)}."
            )
        other = Index(self.dim, self.model, self.collection, kind=self.kind if kind is None else kind, **settings)
        other.add(self.ids, self.vectors())
        return other

    def save(self, folder: str | Path, *, bm25: BM25 | None = None) -> None:
        """Write the index, complete or not at all; an index that was there is replaced as a whole.

        Args:
            folder: to make.
            bm25: of the same documents, to keep with it as `bm25`.

        Raises:
            IndexKindError: too few documents for a kind that learns from them.
            OutputError: there is a file, or a folder that holds something else than an index.
        """
        files = IndexFiles(
            dim=self.dim,
            kind=self.kind,
            keys=self._keys,
            store=self._built(),
            model=self.model,
            collection=self.collection,
        )
        write_index(folder, files, self._alive(), bm25=bm25)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Index:
        """Open an index that `save` wrote; its vectors stay on disk, memory-mapped, until they are read.

        Args:
            folder: of the index.
            verify: compare the hashes of all files. False leaves out the rows of vectors, about a second for each GiB;
                files of faiss are always compared, since reading a damaged or foreign one is unsafe.

        Raises:
            IndexFolderError: no index there, another format, or a file that is not the one that was written.
        """
        files = read_index(folder, verify=verify)
        index = cls(files.dim, files.model, files.collection, kind=files.kind)
        index._keys, index._store = files.keys, files.store
        index._positions = {key: row for row, key in enumerate(files.keys) if key is not None}
        return index

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse an encoder whose vectors do not belong into this index.

        Raises:
            IndexFolderError: another model, or another size.
        """
        name = self.model or "an unknown model"
        if encoder.dim != self.dim:
            raise IndexFolderError(
                f"The index was built with {name} (dim {self.dim}); this encoder is {encoder.folder} "
                f"(dim {encoder.dim}). Open it with dim={self.dim}, or rebuild it with `drama index`."
            )
        if self.model is not None and encoder.fingerprint() != self.model.fingerprint:
            raise IndexFolderError(
                f"The index was built with {name}; this encoder is {encoder.folder}, whose vectors lie in another "
                "space. Use the model it was built with, or rebuild it with `drama index`."
            )

    def _built(self) -> Store:
        """The store, made of the waiting vectors if it is not there yet."""
        if self._store is None:
            self._store = build_store(self.kind, self._waiting)
            self._waiting = Rows(self.dim, np.float32)
        return self._store

    def _alive(self) -> NDArray[np.bool_] | None:
        """False for the rows of removed documents; None where there are none."""
        if self._mask is None and self.removed:
            self._mask = np.fromiter((key is not None for key in self._keys), dtype=bool, count=len(self._keys))
        return self._mask


def _check_ranges(vectors: NDArray[np.float32], ranges: NDArray[np.float32] | None) -> None:
    if ranges is None or not len(vectors):
        return
    beyond = float(((vectors < ranges[0]) | (vectors > ranges[1])).mean())
    if beyond > BEYOND_RANGES:
        warn_caller(
            f"{beyond:.0%} of the numbers lie beyond the range that this index keeps in eight bits, that of the "
            "documents before its first search or save; build it again over all of them."
        )


def _is_storable(key: object) -> bool:
    """Whether an id can be written to a file as it is."""
    return isinstance(key, str) and (key.isascii() or storable(key) == key)


def _first_repeated(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
