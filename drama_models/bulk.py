"""Encoding a whole corpus to shards on disk, in constant memory, resumable after a kill at the first missing shard.

OUT/job.json              what the vectors depend on: model, dim, shard size
OUT/00000.npy             vectors of the first documents, (shard size, dim), float32
OUT/00000.json            their ids, and a hash of the texts they were made from; written after the vectors
OUT/manifest.json         written last: the whole is complete
"""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from drama_models.batching import windows
from drama_models.errors import CollectionError, TextsCutWarning
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.index import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from drama_models.encoder import Encoder

JOB, MANIFEST = "job.json", "manifest.json"
SHARD_DOCUMENTS = 8192


def encode_shards(
    encoder: Encoder,
    documents: Iterable[tuple[str, str]],
    out: str | Path,
    *,
    model: ModelIdentity | None = None,
    shard_documents: int = SHARD_DOCUMENTS,
    total: int | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Encode documents to shards; shards that are there already and fit are kept.

    Args:
        encoder: its `dim` is the size of the vectors.
        documents: id and content of each, in an order that does not change between runs.
        out: folder to fill.
        model: how the model is to be named in the manifest; the encoder's folder by default.
        shard_documents: documents in a shard.
        total: number of documents, if known, for the time left.
        show_progress: a progress bar on the terminal.

    Returns:
        The manifest: model, dim, count, and the shards with their hashes.

    Raises:
        CollectionError: `out` holds vectors of another model, size or shard size.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    identity = model or ModelIdentity.of(encoder)
    job = {"model": asdict(identity), "dim": encoder.dim, "shard_documents": shard_documents}
    _check_job(out, job)
    shards = []
    bar = tqdm(total=total, desc="encode", unit=" documents", disable=None if show_progress else True)
    with bar, _one_warning_about_cut_texts():
        for number, batch in enumerate(windows(documents, shard_documents)):
            shards.append(_encode_shard(encoder, batch, out, number))
            bar.update(len(batch))
    manifest = job | {"count": sum(shard["count"] for shard in shards), "shards": shards}
    _write_json(out / MANIFEST, manifest)
    return manifest


def read_shards(folder: str | Path) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and memory-mapped vectors of each shard, in order.

    Raises:
        CollectionError: the encoding was not finished, or a shard is not the one that was written.
    """
    folder = Path(folder)
    for number, shard in enumerate(read_manifest(folder)["shards"]):
        vectors, ids = folder / f"{number:05}.npy", folder / f"{number:05}.json"
        if not vectors.is_file() or sha256_of_file(vectors) != shard["sha256"]:
            raise CollectionError(f"{vectors} is not the file that was written; run `drama encode` again.")
        yield json.loads(ids.read_text(encoding="utf-8"))["ids"], np.load(vectors, mmap_mode="r", allow_pickle=False)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What a finished folder of vectors holds.

    Raises:
        CollectionError: there is no manifest, so the encoding was not finished.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CollectionError(f"{folder} is not a finished folder of vectors; run `drama encode` (again) to finish it.")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _encode_shard(encoder: Encoder, batch: list[tuple[str, str]], out: Path, number: int) -> dict[str, Any]:
    ids, vectors = out / f"{number:05}.json", out / f"{number:05}.npy"
    source = _hash_of_documents(batch)
    if ids.is_file() and vectors.is_file():
        known = json.loads(ids.read_text(encoding="utf-8"))
        if known["source_sha256"] == source and sha256_of_file(vectors) == known["sha256"]:
            return {"count": len(batch), "sha256": known["sha256"]}
    with atomic_file(vectors) as partial, partial.open("wb") as file:
        np.save(file, encoder.encode_documents([content for _, content in batch]), allow_pickle=False)
    record = {"ids": [key for key, _ in batch], "source_sha256": source, "sha256": sha256_of_file(vectors)}
    _write_json(ids, record)
    return {"count": len(batch), "sha256": record["sha256"]}


@contextmanager
def _one_warning_about_cut_texts() -> Iterator[None]:
    """One warning for the whole corpus instead of one for each shard."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TextsCutWarning)
        yield
    others = [entry for entry in caught if not isinstance(entry.message, TextsCutWarning)]
    for entry in others:
        warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
    cut = sum(entry.message.count for entry in caught if isinstance(entry.message, TextsCutWarning))
    if cut:
        warnings.warn(TextsCutWarning(cut), stacklevel=4)


def _check_job(out: Path, job: dict[str, Any]) -> None:
    path = out / JOB
    if not path.is_file():
        _write_json(path, job)
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in job if known.get(key) != job[key]]
    if differing:
        raise CollectionError(
            f"{out} holds vectors with another {differing[0]} ({known.get(differing[0])}, not {job[differing[0]]}); "
            "choose another folder, or remove this one."
        )


def _hash_of_documents(batch: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for key, content in batch:
        digest.update(json.dumps([key, content]).encode())
    return digest.hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
