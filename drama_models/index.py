"""An index on disk: vectors in FAISS, ids, and a manifest that says which model they belong to.

Written to a temporary folder and renamed. FAISS files are only read after their SHA-256 has been compared with the
manifest's, since reading a damaged or foreign one is unsafe.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import IndexFolderError
from drama_models.folders import atomic_folder, sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from drama_models.encoder import Encoder

MANIFEST, VECTORS, IDS = "manifest.json", "index.faiss", "ids.json"
FORMAT = 1


@dataclass(frozen=True)
class ModelIdentity:
    """The model whose vectors an index holds."""

    name: str
    """Folder or hub name, as it was given."""
    fingerprint: str
    """SHA-256 of configuration, tokenizer and weights."""

    @classmethod
    def of(cls, encoder: Encoder, name: str | None = None) -> ModelIdentity:
        """Identity of a loaded encoder; `name` as the user gave it, the folder by default."""
        return cls(name or str(encoder.folder), encoder.fingerprint())


class Index:
    """Exact inner-product search over document vectors.

    Args:
        dim: size of the vectors.
        model: whose vectors they are; None accepts any encoder.
        collection: folder whose texts the ids belong to, for showing hits; optional.
    """

    def __init__(self, dim: int, model: ModelIdentity | None = None, collection: str | None = None) -> None:
        import faiss

        self.dim, self.model, self.collection = dim, model, collection
        self.ids: list[str] = []
        self._positions: dict[str, int] = {}
        self._faiss: Any = faiss.IndexFlatIP(dim)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add documents.

        Args:
            ids: one for each vector, not yet in the index.
            vectors: (number of documents, dim), float32.

        Raises:
            ValueError: another number or size of vectors, a vector that is not finite, or an id that is there already.
        """
        if vectors.shape != (len(ids), self.dim):
            raise ValueError(f"Expected vectors of shape {(len(ids), self.dim)}, found {vectors.shape}.")
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ValueError(f"The vector of document {ids[row]!r} is not finite; encode it again.")
        known = [key for key in ids if key in self._positions]
        if known or len(set(ids)) != len(ids):
            raise ValueError(
                f"Document id {(known or [_first_repeated(ids)])[0]!r} is in the index already; ids must be unique."
            )
        self._positions |= {key: len(self.ids) + offset for offset, key in enumerate(ids)}
        self.ids.extend(ids)
        self._faiss.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def search(self, queries: NDArray[np.float32], k: int = 10) -> list[list[tuple[str, float]]]:
        """Best documents of each query.

        Args:
            queries: (number of queries, dim), float32.
            k: hits for each query; fewer where the index is smaller.

        Returns:
            For each query (document id, inner product), best first.

        Raises:
            ValueError: queries of another size, or `k` below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"Expected queries of shape (n, {self.dim}), found {queries.shape}.")
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        if not self.ids or not len(queries):
            return [[] for _ in queries]
        scores, rows = self._faiss.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self.ids)))
        return [
            [(self.ids[row], float(score)) for row, score in zip(*hits, strict=True)]
            for hits in zip(rows, scores, strict=True)
        ]

    def vectors(self) -> NDArray[np.float32]:
        """The stored vectors in the order of `ids`, (number of documents, dim), float32."""
        stored: NDArray[np.float32] = self._faiss.reconstruct_n(0, len(self.ids))
        return stored

    def save(self, folder: str | Path) -> None:
        """Write the index, complete or not at all; an index that was there is replaced as a whole."""
        import faiss

        with atomic_folder(folder) as partial:
            faiss.write_index(self._faiss, str(partial / VECTORS))
            (partial / IDS).write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "kind": "flat",
                "metric": "inner_product",
                "dim": self.dim,
                "count": len(self.ids),
                "model": asdict(self.model) if self.model else None,
                "collection": self.collection,
                "sha256": {name: sha256_of_file(partial / name) for name in (VECTORS, IDS)},
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Open an index that `save` wrote.

        Raises:
            IndexFolderError: no index there, another format, or a file that is not the one that was written.
        """
        import faiss

        manifest = _read_manifest(Path(folder))
        for name, expected in manifest["sha256"].items():
            path = Path(folder) / Path(name).name
            if not path.is_file() or sha256_of_file(path) != expected:
                raise IndexFolderError(
                    f"{path} is not the file that was written; rebuild the index with `drama index`."
                )
        model = ModelIdentity(**manifest["model"]) if manifest["model"] else None
        index = cls(manifest["dim"], model, manifest["collection"])
        index.ids = json.loads((Path(folder) / IDS).read_text(encoding="utf-8"))
        index._positions = {key: position for position, key in enumerate(index.ids)}
        index._faiss = faiss.read_index(str(Path(folder) / VECTORS))
        if not (index._faiss.ntotal == len(index.ids) == manifest["count"]) or index._faiss.d != index.dim:
            raise IndexFolderError(f"{folder} does not fit its manifest; rebuild the index with `drama index`.")
        return index

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse an encoder whose vectors do not belong into this index.

        Raises:
            IndexFolderError: another model, or another size.
        """
        name = self.model.name if self.model else "an unknown model"
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        readable = manifest["format"] == FORMAT and set(manifest["sha256"]) == {VECTORS, IDS}
    except (OSError, ValueError, KeyError, TypeError):
        raise IndexFolderError(f"{folder} is not an index; build one with `drama index`.") from None
    if not readable:
        raise IndexFolderError(
            f"{folder} has index format {manifest['format']}, this version reads {FORMAT}; rebuild it."
        )
    return manifest


def _first_repeated(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
