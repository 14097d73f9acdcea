"""Randomness as a function of its place: the same seed, epoch and row give the same draw, in any order, on any rank.

Nothing here keeps a state, so a run resumes in the middle of an epoch by naming the step. `draw` hashes its
coordinates (the finaliser of SplitMix64); `permute` is a Feistel network over the next power of four, walked until it
lands below the length, so that an epoch over 25 million rows is shuffled without a list of them.

Steele, Lea and Flood, 2014 (SplitMix); Black and Rogaway, 2002 (ciphers over arbitrary finite domains).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FEISTEL_ROUNDS = 6
SORTED_LENGTH = 1 << 12  # up to that, sorting by a drawn key is as cheap, and the network mixes too few bits


def draw(*coordinates: ArrayLike) -> NDArray[np.uint64]:
    """Uniform 64-bit numbers, one for each combination of coordinates.

    Args:
        coordinates: non-negative integers, such as seed, epoch and rows; broadcast against each other.

    Returns:
        uint64, of the broadcast shape.
    """
    mixed: NDArray[np.uint64] = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            mixed = _finalise(mixed * GOLDEN + np.asarray(coordinate).astype(np.uint64) + GOLDEN)
    return mixed


def draw_below(limit: ArrayLike, *coordinates: ArrayLike) -> NDArray[np.int64]:
    """Uniform integers in [0, limit), one for each combination of coordinates; `limit` is at least 1."""
    return (draw(*coordinates) % np.asarray(limit).astype(np.uint64)).astype(np.int64)


def permute(places: NDArray[np.int64], length: int, *key: int) -> NDArray[np.int64]:
    """Where the places of a shuffled list of `length` rows come from: a permutation of [0, length) for every key.

    Args:
        places: integers in [0, length).
        length: rows of the whole list, at least 1.
        key: seed, epoch and so on.

    Returns:
        Rows in [0, length), of the shape of `places`; distinct where the places are.
    """
    if length <= SORTED_LENGTH:
        return np.argsort(draw(*key, np.arange(length)), kind="stable")[places]
    half_bits = ((length - 1).bit_length() + 1) // 2
    round_keys = draw(*key, np.arange(FEISTEL_ROUNDS))
    rows = _feistel(places.astype(np.uint64), half_bits, round_keys)
    while (outside := rows >= length).any():
        rows[outside] = _feistel(rows[outside], half_bits, round_keys)
    return rows.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    width, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> width, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (draw(round_key, right) & mask)
    return (left << width) | right


def _finalise(values: NDArray[Any]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
