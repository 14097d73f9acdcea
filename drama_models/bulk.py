"""Encoding a whole corpus to shards on disk, in constant memory, resumable after a kill at the first missing shard.

OUT/job.json              what the vectors depend on: model, dim, length, shard size, precision stored and computed in
OUT/ranges.npy            for eight bits, of the first documents; see `drama_models.quantisation`
OUT/00000.npy             vectors of the first documents, (shard size, dim), float32, or codes of another precision
OUT/00000.json            their ids, and a hash of the texts they were made from; written after the vectors
OUT/manifest.json         written last: the whole is complete
"""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from drama_models.arrays import write_array
from drama_models.batching import windows
from drama_models.bulk_progress import EncodingProgress, one_warning_about_cut_texts
from drama_models.errors import CollectionError, OutputError, TextsCutWarning
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.index import ModelIdentity
from drama_models.quantisation import EIGHT_BITS, dequantise, quantise, value_ranges
from drama_models.ray_workers import Engine
from drama_models.tokenisation import checked_text, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from drama_models.encoder import Encoder
    from drama_models.quantisation import EmbeddingPrecision

JOB, MANIFEST, RANGES = "job.json", "manifest.json", "ranges.npy"
JOB_DEFAULTS = {"precision": "float32", "computing_precision": "fp32", "max_length": None}
KEPT = {"kept": True}  # marks a shard that was there already; not written
SHARD_DOCUMENTS = 8192
RANGES_DOCUMENTS = 2048  # that the ranges of eight bits are taken from


def encode_shards(
    encoder: Encoder,
    documents: Iterable[tuple[str, str]],
    out: str | Path,
    *,
    model: ModelIdentity | None = None,
    precision: EmbeddingPrecision = "float32",
    shard_documents: int = SHARD_DOCUMENTS,
    total: int | None = None,
    show_progress: bool = False,
    engine: Engine = "local",
    workers: int = 2,
) -> dict[str, Any]:
    """Encode documents to shards; shards that are there already and fit are kept.

    Args:
        encoder: its `dim` is the size of the vectors.
        documents: id and content of each, in an order that does not change between runs.
        out: folder to fill.
        model: how the model is to be named in the manifest; the encoder's folder by default.
        precision: what is stored, see `drama_models.quantisation`; the ranges of eight bits are those of the first
            2,048 documents.
        shard_documents: documents in a shard.
        total: number of documents, if known, for the time left.
        show_progress: a progress bar on the terminal; elsewhere a line every ten seconds.
        engine: "local" encodes in this process, "ray" in others, of this machine or of a cluster that can reach `out`.
        workers: processes that encode at the same time, for "ray".

    Returns:
        The manifest: model, dim, count, and the shards with their hashes.

    Raises:
        CollectionError: `out` holds vectors of another model, size, length, precision or shard size, or a shard of it
            is damaged; or eight bits of fewer than two documents.
        OutputError: `out` holds something else.
        ValueError: `shard_documents` is no whole number of at least 1, there is no such engine, or an id is no text.
        TextError: a document is no text.
        MissingExtraError: Ray is not installed.
        ClusterError: its cluster is not there, or a worker keeps dying.
    """
    if (whole_number(shard_documents) or 0) < 1:
        raise ValueError(f"shard_documents={shard_documents!r} must be a whole number of at least 1.")
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r} must be one of {', '.join(get_args(Engine))}.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    identity = model or ModelIdentity.of(encoder)
    named = {"name": identity.name, "fingerprint": identity.fingerprint}  # which is of both encoders
    job = {"model": named, "dim": encoder.dim, "shard_documents": shard_documents}
    by = encoder.document_encoder
    asked: dict[str, Any] = {"precision": precision, "computing_precision": by.runtime.precision}
    asked["max_length"] = None if by.max_length == by.profile.max_length else by.max_length
    job |= {name: value for name, value in asked.items() if value != JOB_DEFAULTS[name]}
    _check_job(out, job)
    batches = windows(_checked(documents), shard_documents)
    first = next(batches, None)
    ranges = _ranges(encoder, first) if first is not None and precision in EIGHT_BITS else None
    _begin(out, job, ranges)
    batches = chain([] if first is None else [first], batches)
    shard_of = partial(_make_shard, out=out.absolute(), precision=precision, ranges=ranges)
    if engine == "ray":
        from drama_models.bulk_ray import shards_on_ray

        made = shards_on_ray(encoder, shard_of, batches, workers)
    else:
        made = ((number, shard_of(encoder, number, batch)) for number, batch in enumerate(batches))
    found: dict[int, dict[str, Any]] = {}
    with EncodingProgress(total, shown=show_progress) as progress, one_warning_about_cut_texts():
        for number, shard in made:
            progress.count(shard["count"], encoded=not shard.pop("kept", False))
            found[number] = shard
    shards = [found[number] for number in sorted(found)]
    manifest = job | {"model": identity.record(), "count": sum(shard["count"] for shard in shards), "shards": shards}
    _write_json(out / MANIFEST, manifest)
    return manifest


def _checked(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The documents, checked as they are read: a shard knows only its own places."""
    for position, (key, content) in enumerate(documents):
        if not isinstance(key, str):
            raise ValueError(f"The id of document {position} is {key!r}; pass text.")
        yield key, checked_text(content, position)


def read_shards(folder: str | Path) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and vectors of each shard, in order; memory-mapped, or decoded from what is stored in fewer bits.

    Raises:
        CollectionError: the encoding was not finished, or a shard is not the one that was written.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    precision, ranges = manifest.get("precision", "float32"), None
    for number, shard in enumerate(manifest["shards"]):
        vectors, ids = folder / f"{number:05}.npy", folder / f"{number:05}.json"
        if not vectors.is_file() or sha256_of_file(vectors) != shard["sha256"]:
            raise CollectionError(f"{vectors} is not the file that was written; run `drama encode` again.")
        keys = (_read_json(ids) or {}).get("ids")
        if not isinstance(keys, list) or shard.get("ids_sha256", _hash_of_ids(keys)) != _hash_of_ids(keys):
            raise CollectionError(f"{ids} is not the file that was written; run `drama encode` again.")
        if precision in EIGHT_BITS and ranges is None:
            ranges = _checked_ranges(folder, shard["ranges_sha256"])
        stored = np.load(vectors, mmap_mode="r", allow_pickle=False)
        if precision != "float32":
            stored = dequantise(stored, precision, dim=manifest["dim"], ranges=ranges)
        if len(keys) != len(stored):
            raise CollectionError(f"{ids} names {len(keys)} documents of {len(stored)}; run `drama encode` again.")
        yield keys, stored


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What a finished folder of vectors holds.

    Raises:
        CollectionError: there is no manifest, so the encoding was not finished.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CollectionError(f"{folder} is not a finished folder of vectors; run `drama encode` (again) to finish it.")
    manifest = _read_json(path) or {}
    shards = manifest.get("shards")
    whole = isinstance(shards, list) and all(isinstance(shard, dict) and "sha256" in shard for shard in shards)
    try:
        ModelIdentity.read(manifest.get("model"))
    except ValueError:
        whole = False
    if not whole or not isinstance(manifest.get("dim"), int):
        raise CollectionError(f"{path} is damaged, or not that of a folder of vectors; run `drama encode` again.")
    return manifest


def _make_shard(
    encoder: Encoder,
    number: int,
    batch: list[tuple[str, str]],
    *,
    out: Path,
    precision: EmbeddingPrecision,
    ranges: NDArray[np.float32] | None,
) -> dict[str, Any]:
    """The shard that is there, else a new one."""
    return _kept_shard(batch, out, number, ranges) or _encode_shard(encoder, batch, out, number, precision, ranges)


def _kept_shard(
    batch: list[tuple[str, str]], out: Path, number: int, ranges: NDArray[np.float32] | None
) -> dict[str, Any] | None:
    """A shard that is there already, made of these documents and whole."""
    ids, vectors = out / f"{number:05}.json", out / f"{number:05}.npy"
    if not ids.is_file() or not vectors.is_file():
        return None
    known, keys = _read_json(ids) or {}, [key for key, _ in batch]
    same_ranges = known.get("ranges_sha256") == _hash_of_ranges(ranges).get("ranges_sha256")
    if not same_ranges or known.get("source_sha256") != _hash_of_documents(batch) or known.get("ids") != keys:
        return None
    found = sha256_of_file(vectors)
    if found != known.get("sha256"):
        return None
    return {"count": len(batch), "sha256": found, "ids_sha256": _hash_of_ids(keys)} | _hash_of_ranges(ranges) | KEPT


def _encode_shard(
    encoder: Encoder,
    batch: list[tuple[str, str]],
    out: Path,
    number: int,
    precision: EmbeddingPrecision,
    ranges: NDArray[np.float32] | None,
) -> dict[str, Any]:
    ids, vectors = out / f"{number:05}.json", out / f"{number:05}.npy"
    encoded = encoder.encode_documents([content for _, content in batch])
    with atomic_file(vectors) as partial:
        write_array(partial, quantise(encoded, precision, ranges))
    hashes = {"sha256": sha256_of_file(vectors), **_hash_of_ranges(ranges)}
    keys = [key for key, _ in batch]
    _write_json(ids, {"ids": keys, "source_sha256": _hash_of_documents(batch), **hashes})
    return {"count": len(batch), "sha256": hashes["sha256"], "ids_sha256": _hash_of_ids(keys)} | _hash_of_ranges(ranges)


def _ranges(encoder: Encoder, batch: list[tuple[str, str]]) -> NDArray[np.float32]:
    """Ranges of the first documents; made anew in every run, so that they never belong to other documents.

    Raises:
        CollectionError: fewer than two documents.
    """
    if len(batch) < 2:
        raise CollectionError("Eight bits need at least two documents, whose ranges they are relative to; use float32.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextsCutWarning)  # these documents are encoded again, and counted then
        return value_ranges(encoder.encode_documents([content for _, content in batch[:RANGES_DOCUMENTS]]))


def _checked_ranges(folder: Path, expected: str) -> NDArray[np.float32]:
    path = folder / RANGES
    found = np.load(path, allow_pickle=False) if path.is_file() else None
    if _hash_of_ranges(found).get("ranges_sha256") != expected:
        raise CollectionError(f"{path} is not the file that was written; run `drama encode` again.")
    return cast("NDArray[np.float32]", found)


def _hash_of_ranges(ranges: NDArray[np.float32] | None) -> dict[str, str]:
    return {} if ranges is None else {"ranges_sha256": hashlib.sha256(ranges.tobytes()).hexdigest()}


def _check_job(out: Path, job: dict[str, Any]) -> None:
    path = out / JOB
    if not path.is_file():
        if any(not other.name.startswith(".") for other in out.iterdir()):
            raise OutputError(f"{out} holds something else than vectors of `drama encode`; choose another folder.")
        return
    stored = _read_json(path)
    if stored is None:
        raise CollectionError(f"{path} is damaged; choose another folder, or remove this one.")
    known, job = JOB_DEFAULTS | stored, JOB_DEFAULTS | job
    differing = [key for key in job if known.get(key) != job[key]]
    if differing:
        raise CollectionError(
            f"{out} holds vectors with another {differing[0]} ({known.get(differing[0])}, not {job[differing[0]]}); "
            "choose another folder, or remove this one."
        )


def _begin(out: Path, job: dict[str, Any], ranges: NDArray[np.float32] | None) -> None:
    """Write what the vectors depend on; the job first, since it says whose folder this is."""
    if not (out / JOB).is_file():
        _write_json(out / JOB, job)
    if ranges is not None:
        with atomic_file(out / RANGES) as partial:
            write_array(partial, ranges)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that a file holds; None where there is no such file or it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _hash_of_ids(keys: list[str]) -> str:
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def _hash_of_documents(batch: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for key, content in batch:
        digest.update(json.dumps([key, content]).encode())
    return digest.hexdigest()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
