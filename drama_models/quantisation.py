"""Embeddings in eight bits or one bit a coordinate, with the codes that sentence-transformers makes.

    precision  dtype    columns    code of a coordinate
    float32    float32  dim        itself
    uint8      uint8    dim        which of 255 equal steps from the lowest to the highest value of its column it lies
                                   on; values beyond take the first or the last
    int8       int8     dim        128 less
    ubinary    uint8    dim / 8    a bit, set above zero; eight to a byte, the first in the highest
    binary     int8     dim / 8    the same bytes, 128 less

`dequantise` gives the middle of a step, so an eight-bit coordinate is at most half a step off; of one bit the sign is
left. Ranges should come from many vectors of the same model; those of the vectors themselves by default.

Matryoshka sizes come first: 256 of 768 coordinates in eight bits take a twelfth, and one bit of all 768 takes 1/32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EmbeddingPrecision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[str, ...] = get_args(EmbeddingPrecision)
EIGHT_BITS, ONE_BIT = ("int8", "uint8"), ("binary", "ubinary")
STEPS = 255


def value_ranges(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Lowest and highest value of each column, (2, dim), float32: what eight-bit codes are relative to.

    Raises:
        ValueError: fewer than two vectors, whose ranges would say nothing.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(
            f"Ranges need at least two vectors, found shape {vectors.shape}; pass ranges= of a larger sample."
        )
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def quantise(
    vectors: NDArray[np.floating[Any]], precision: EmbeddingPrecision, ranges: NDArray[np.floating[Any]] | None = None
) -> NDArray[Any]:
    """Codes of embeddings, equal to those of `sentence_transformers.quantize_embeddings`.

    Args:
        vectors: (n, dim), floating.
        precision: "float32", "int8", "uint8", "binary" or "ubinary".
        ranges: (2, dim), as of `value_ranges`, for eight bits; of the vectors themselves by default.

    Returns:
        (n, dim) for eight bits, (n, ⌈dim / 8⌉) for one, in the dtype that the module's table names.

    Raises:
        ValueError: another precision, codes instead of vectors, or ranges that do not fit.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise ValueError(
            f"Expected floating vectors of shape (n, dim), found {vectors.dtype} {vectors.shape}; codes are not "
            "quantised again."
        )
    if precision == "float32":
        return vectors.astype(np.float32)
    if precision in ONE_BIT:
        bits = np.packbits(vectors > 0, axis=1)
        return bits if precision == "ubinary" else _shifted(bits)
    if precision not in EIGHT_BITS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}.")
    if not len(vectors):
        return np.empty(vectors.shape, dtype=precision)
    starts, steps = _steps(value_ranges(vectors) if ranges is None else ranges, vectors.shape[1])
    codes = np.clip(np.floor((vectors - starts) / steps), 0, STEPS).astype(np.uint8)
    return codes if precision == "uint8" else _shifted(codes)


def dequantise(
    codes: NDArray[Any],
    precision: EmbeddingPrecision,
    *,
    dim: int | None = None,
    ranges: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.float32]:
    """Vectors near those that were quantised: the middles of the steps, or signs scaled to length 1.

    Args:
        codes: as of `quantise`.
        precision: that they were made with.
        dim: coordinates of a vector, for one bit; eight times the columns by default.
        ranges: those that eight-bit codes were made with.

    Returns:
        (n, dim), float32.

    Raises:
        ValueError: another precision, or no ranges for eight bits.
    """
    if precision == "float32":
        return np.asarray(codes, dtype=np.float32)
    if precision in ONE_BIT:
        bits = codes if precision == "ubinary" else _shifted(codes)
        signs = np.unpackbits(np.asarray(bits), axis=1, count=dim).astype(np.float32)
        return (2 * signs - 1) / np.float32(np.sqrt(max(signs.shape[1], 1)))
    if precision not in EIGHT_BITS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}.")
    if ranges is None:
        raise ValueError("Eight-bit codes mean nothing without the ranges they were made with; pass ranges=.")
    starts, steps = _steps(ranges, codes.shape[1], constant=0.0)
    whole = codes if precision == "uint8" else _shifted(codes)
    return (np.asarray(whole, dtype=np.float32) + np.float32(0.5)) * steps + starts


def columns(precision: EmbeddingPrecision, dim: int) -> int:
    """Columns of the codes of vectors with `dim` coordinates."""
    return -(-dim // 8) if precision in ONE_BIT else dim


def _shifted(codes: NDArray[Any]) -> NDArray[Any]:
    """Unsigned to signed bytes, 128 lower, and back: both flip the highest bit."""
    other = np.int8 if codes.dtype == np.uint8 else np.uint8
    return (codes.view(np.uint8) ^ np.uint8(128)).view(other)


def _steps(
    ranges: NDArray[np.floating[Any]], dim: int, *, constant: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Start and width of the steps of each column, `constant` of one that never changes."""
    if np.shape(ranges) != (2, dim):
        raise ValueError(f"Expected ranges of shape (2, {dim}), found {np.shape(ranges)}.")
    starts, ends = np.asarray(ranges, dtype=np.float32)
    steps = (ends - starts) / np.float32(STEPS)
    return starts, np.where(steps == 0, np.float32(constant), steps)
