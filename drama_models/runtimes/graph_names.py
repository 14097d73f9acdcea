"""What a graph and whoever feeds it agree on: names of inputs, outputs and tensors, and how texts lie in a row.

Apart from the graphs themselves, so that a graph that was kept on disk can be run without the package that builds one.

N tokens in all, B texts, D hidden, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMBEDDED = "embedded"  # (1, N, D), float32
COSINES, SINES = "cosines", "sines"  # (N, d / 2) each, float32
COUNT, STARTS, ENDS = "count", "starts", "ends"  # (), (B, 1), (B, 1), int64
OUTPUT = "last_hidden_state"  # (1, N, D), float32

WEIGHT, BIAS, INT8, SCALE, PEAK = ".weight", ".bias", ".int8", ".scale", ".peak"  # endings of a layer's tensors
INT8_LIMIT = 127
INT8_ZERO = 128  # stands for 0 in unsigned bytes


def edges_of(lengths: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The inputs that say where each text of a row starts and ends, from the texts' lengths, (B,)."""
    ends = np.cumsum(lengths)
    return {COUNT: np.array(len(lengths)), STARTS: (ends - lengths)[:, None], ENDS: ends[:, None]}
