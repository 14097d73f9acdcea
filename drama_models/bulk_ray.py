"""Bulk encoding on Ray: workers make the shards of `drama_models.bulk` with its function, in a folder all can reach."""

from __future__ import annotations

import socket
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError, TextsCutWarning
from drama_models.ray_workers import map_on_ray
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from drama_models.encoder import Encoder

    ShardOf = Callable[[Encoder, int, list[tuple[str, str]]], dict[str, Any]]
    """Makes a shard, or keeps the one that is there: encoder, number, documents."""


def shards_on_ray(
    encoder: Encoder, shard_of: ShardOf, batches: Iterable[list[tuple[str, str]]], workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and record of each shard, as they get ready.

    Args:
        encoder: whose like each worker loads.
        shard_of: makes a shard.
        batches: documents of each shard.
        workers: processes that encode at the same time.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster is not there, or a worker keeps dying.
        ModelFolderError: a worker's model is another one.
    """
    make = partial(make_worker, encoder.again, encoder.fingerprint(), shard_of)
    gpus = int(getattr(encoder.document_encoder.runtime, "device", "cpu") not in ("cpu", "mps"))
    for number, (shard, cut) in map_on_ray(make, enumerate(batches), workers, gpus=gpus):
        if cut:
            warn_caller(TextsCutWarning(cut))
        yield number, shard


def make_worker(
    again: Callable[[], Encoder], fingerprint: str, shard_of: ShardOf
) -> Callable[[tuple[int, list[tuple[str, str]]]], tuple[dict[str, Any], int]]:
    """What a process calls with number and documents of a shard: gives its record, and how many texts were cut.

    Args:
        again: loads the encoder.
        fingerprint: that it must have.
        shard_of: makes a shard.

    Raises:
        ModelFolderError: it is another model.
    """
    encoder = again()
    if encoder.fingerprint() != fingerprint:
        raise ModelFolderError(
            f"{encoder.folder} on {socket.gethostname()} is not the model that the other machines have; copy it anew."
        )

    def shard(task: tuple[int, list[tuple[str, str]]]) -> tuple[dict[str, Any], int]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TextsCutWarning)
            made = shard_of(encoder, *task)
        return made, sum(entry.message.count for entry in caught if isinstance(entry.message, TextsCutWarning))

    return shard
