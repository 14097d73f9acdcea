"""How far the sums of a matrix product can go, whatever the texts are: what keeps graphs in float16 below its limit.

Float16 ends at 65,504. Two bounds need no sample texts, and hold for every partial sum too:

- Behind a norm, states are gain * z + offset with |z| <= sqrt(D), so a row w of the weight gives at most
  sqrt(D) * |w * gain| + sum |w * offset| (Cauchy-Schwarz).
- Of any other states whose largest magnitude is c, it gives at most c * sum |w|. Dividing each token's states by their
  own largest magnitude therefore makes every product fit, and multiplying by it afterwards gives the same numbers.

D is the size of a norm's states, O the number of a layer's outputs, I of its inputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALLOWED = 32_000.0  # half of float16's largest number: rounding of inputs and sums stays far below the other half
LARGEST_SCALE = 1024.0  # more would bring nothing: what is 2**-24 of it is still above zero


def largest_after_norm(
    weight: NDArray[np.floating[Any]], gain: NDArray[np.floating[Any]], offset: NDArray[np.floating[Any]] | None = None
) -> float:
    """The largest magnitude among the inputs, sums and outputs of a linear layer that reads a norm.

    Args:
        weight: (O, D).
        gain: of an RMSNorm or LayerNorm, (D,).
        offset: of a LayerNorm, (D,).
    """
    shift = np.zeros_like(gain) if offset is None else np.abs(offset)
    reach = math.sqrt(len(gain))
    inputs = reach * np.abs(gain) + shift
    outputs = reach * np.linalg.norm(weight * gain, axis=1) + np.abs(weight) @ shift
    return float(max(inputs.max(), outputs.max()))


def fitting_scale(weight: NDArray[np.floating[Any]]) -> float:
    """The largest magnitude of inputs, a power of two, with which no sum of a linear layer leaves float16.

    Args:
        weight: (O, I).
    """
    longest = max(float(np.abs(weight).sum(axis=1).max()), ALLOWED / LARGEST_SCALE)
    return 2.0 ** math.floor(math.log2(ALLOWED / longest))
