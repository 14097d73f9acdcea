"""An index on disk: a manifest with the SHA-256 of every other file, which is checked before faiss reads one.

manifest.json             kind and settings, size, count, model, collection, hashes
ids.json                  the document of each row; null for a removed one that its kind cannot leave out
index.faiss               all kinds but flat
rows-00000.npy, …         vectors of flat, and those that binary and ivf_pq score again with; up to 1 GiB each, mapped
ranges.npy                of eight-bit rows
bm25/                     where it is kept too, with hashes of its own

Reading a damaged or foreign faiss file is unsafe, so its hash is always compared. Rows are plain numbers: comparing
theirs reads the whole file once, about a second for each GiB, and can be left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from drama_models.bm25 import FOLDER as BM25_FOLDER
from drama_models.errors import IndexFolderError
from drama_models.folders import atomic_folder, check_replaceable, read_whole, sha256_of_file
from drama_models.index.build import read_store
from drama_models.index.identity import ModelIdentity
from drama_models.index.kinds import chosen_kind, settings_of
from drama_models.index.rescoring import RANGES
from drama_models.index.rows import ROWS, Rows
from drama_models.index.stores import FAISS_FILE, FlatStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drama_models.bm25 import BM25
    from drama_models.index.kinds import Kind
    from drama_models.index.stores import Store

MANIFEST, IDS = "manifest.json", "ids.json"
FORMAT, FLAT_FORMAT = 2, 1
FILE_NAMES = re.compile(rf"{re.escape(IDS)}|{re.escape(FAISS_FILE)}|{re.escape(RANGES)}|{ROWS}-\d{{5}}\.npy")


@dataclass(frozen=True, kw_only=True)
class IndexFiles:
    """What an index folder holds."""

    dim: int
    kind: Kind
    keys: list[str | None]
    """Document id of each row, None for a removed one."""
    store: Store
    model: ModelIdentity | None
    collection: str | None


def write_index(folder: str | Path, files: IndexFiles, alive: NDArray[Any] | None, *, bm25: BM25 | None = None) -> None:
    """Write an index, complete or not at all; one that was there is replaced as a whole.

    Args:
        folder: to make.
        files: what to write.
        alive: (rows,), False for removed ones; None where there are none.
        bm25: of the same documents, to keep with it.

    Raises:
        OutputError: there is a file, or a folder that holds something else than an index.
    """
    check_replaceable(Path(folder), (IDS,))
    kept = [key for key in files.keys if key is not None] if files.store.shrinks else files.keys
    with atomic_folder(folder) as partial:
        files.store.write(partial, alive)
        (partial / IDS).write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "kind": files.kind.name,
            "settings": settings_of(files.kind),
            "metric": "inner_product",
            "dim": files.dim,
            "rows": len(kept),
            "count": sum(key is not None for key in kept),
            "model": files.model.record() if files.model else None,
            "collection": files.collection,
            "sha256": {path.name: sha256_of_file(path) for path in sorted(partial.iterdir())},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if bm25 is not None:
            bm25.save(partial / BM25_FOLDER)


def read_index(folder: str | Path, *, verify: bool = True) -> IndexFiles:
    """Check an index folder and memory-map it.

    Args:
        folder: that `write_index` made.
        verify: compare the hashes of rows too, not only those of the files that are unsafe to read.

    Raises:
        IndexFolderError: no index there, another format, a file that is not the one that was written, or another index
            each time that it is opened.
    """
    folder = Path(folder)
    return read_whole([folder], partial(_read_index, folder, verify=verify), IndexFolderError)


def _read_index(folder: Path, *, verify: bool) -> IndexFiles:
    manifest = _read_manifest(folder)
    for name, expected in manifest["sha256"].items():
        path = folder / name
        unchecked = not verify and name.startswith(ROWS)
        if not path.is_file() or not (unchecked or sha256_of_file(path) == expected):
            raise IndexFolderError(f"{path} is not the file that was written; rebuild the index with `drama index`.")
    try:
        keys = _checked_keys(json.loads((folder / IDS).read_text(encoding="utf-8")))
        kind = chosen_kind(manifest["kind"], manifest.get("settings"))
        old = manifest["format"] == FLAT_FORMAT
        store = _old_flat_store(kind, manifest["dim"], folder) if old else read_store(kind, manifest["dim"], folder)
        fits = len(store) == len(keys) == manifest["count" if old else "rows"]
        model = None if manifest["model"] is None else ModelIdentity.read(manifest["model"])
        collection = manifest["collection"]
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError, OSError, EOFError):
        fits = False
    if not fits or not isinstance(collection, str | None):
        raise IndexFolderError(f"{folder} does not fit its manifest; rebuild the index with `drama index`.")
    return IndexFiles(dim=manifest["dim"], kind=kind, keys=keys, store=store, model=model, collection=collection)


def _checked_keys(keys: Any) -> list[str | None]:
    """Ids of rows, each once, None for a removed one.

    Raises:
        ValueError: something else.
    """
    texts = [key for key in keys if key is not None] if isinstance(keys, list) else [None]
    if not all(isinstance(key, str) for key in texts) or len(set(texts)) != len(texts):
        raise ValueError("The ids are no list of texts that are all different.")
    return cast("list[str | None]", keys)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = type(manifest["format"]) is int and manifest["format"] in (FORMAT, FLAT_FORMAT)
        hashes = manifest["sha256"]
        named = isinstance(hashes, dict) and IDS in hashes and all(map(FILE_NAMES.fullmatch, hashes))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise IndexFolderError(f"{folder} is not an index; build one with `drama index`.") from None
    if not known:
        raise IndexFolderError(
            f"{folder} has index format {manifest['format']}, this version reads {FORMAT}; rebuild it."
        )
    if not named:
        raise IndexFolderError(f"{path} names files that are not an index's; rebuild it with `drama index`.")
    return manifest


def _old_flat_store(kind: Kind, dim: int, folder: Path) -> Store:
    """An index from before there were kinds: one flat faiss file."""
    import faiss

    index = faiss.read_index(str(folder / FAISS_FILE))
    rows = Rows(dim, "float32")
    if index.d != dim:
        raise ValueError(f"{FAISS_FILE} holds vectors of {index.d} numbers, expected {dim}.")
    rows.append(index.reconstruct_n(0, index.ntotal))
    return FlatStore(kind, dim, rows)
