"""From hidden states to embeddings: pool, cut to `dim`, then normalise. In NumPy, for every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Pooling = Literal["mean", "last", "cls"]
SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


def pool(hidden: NDArray[np.floating], attention_mask: NDArray[np.integer], pooling: Pooling) -> NDArray[np.floating]:
    """One vector for each text.

    Args:
        hidden: last hidden states, (B, T, D).
        attention_mask: 1 for real tokens, 0 for padding on either side, (B, T).
        pooling: mean over real tokens, the last real token, or the first one.

    Returns:
        (B, D), not normalised, dtype of `hidden`.
    """
    if pooling == "mean":
        weights = attention_mask[..., None].astype(hidden.dtype)
        return (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    rows = np.arange(len(hidden))
    if pooling == "cls":
        return hidden[rows, attention_mask.argmax(axis=1)]
    last = attention_mask.shape[1] - 1 - attention_mask[:, ::-1].argmax(axis=1)
    return hidden[rows, last]


def pool_rows(states: NDArray[np.float32], lengths: Sequence[int], pooling: Pooling) -> NDArray[np.float32]:
    """One vector for each text of a row without padding.

    Args:
        states: last hidden states of all tokens, text after text, (N, D).
        lengths: tokens of each text, at least one, N in all.
        pooling: mean over a text's tokens, its last token, or its first one.

    Returns:
        (number of texts, D), not normalised.
    """
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    starts = ends - lengths
    if pooling == "mean":
        sums: NDArray[np.float32] = np.add.reduceat(states, starts, axis=0)
        return sums / np.asarray(lengths, dtype=np.float32)[:, None]
    return states[starts if pooling == "cls" else ends - 1]


def cosines(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cosine of each row with the same row of another set, (N, D) twice to (N,); NaN where one has no length."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    products: NDArray[np.floating] = (found * expected).sum(axis=1) / lengths
    return products


def finish(pooled: NDArray[np.floating], dim: int | None, *, normalise: bool) -> NDArray[np.floating]:
    """Keep the first `dim` coordinates, then scale each row to length 1: (B, D) to (B, dim), dtype of `pooled`.

    The order matters: cut after normalising, vectors are shorter than 1 and scores are not cosines.
    """
    cut = pooled[:, :dim]
    if normalise:
        cut = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), SMALLEST_NORM)
    return cut
