"""A ragged batch as rectangles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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
