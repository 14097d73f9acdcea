"""A ragged batch as rectangles, and without the texts that have no token at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def pad(batch: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids padded on the right with 0, and the mask of real tokens, both (B, T), int64.

    The padding id does not matter: padded positions are masked as keys and left out of pooling.
    """
    lengths = np.array([len(ids) for ids in batch])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask.astype(bool)] = np.concatenate(batch)
    return ids, mask


def embed_filled(
    batch: Sequence[NDArray[np.int64]],
    size: int,
    embed: Callable[[Sequence[NDArray[np.int64]]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Embed the texts that have tokens; a text without any gets the zero vector.

    Args:
        batch: token ids of each text, (T,) each.
        size: of a vector.
        embed: gives one vector for each of the texts it is called with.

    Returns:
        (number of texts, size), float32.
    """
    filled = [position for position, ids in enumerate(batch) if len(ids)]
    if len(filled) == len(batch) > 0:
        return embed(batch)
    vectors = np.zeros((len(batch), size), dtype=np.float32)
    if filled:
        vectors[filled] = embed([batch[position] for position in filled])
    return vectors
