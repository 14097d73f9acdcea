"""Outlier channels moved from activations into weights, without changing the model by a bit.

A few channels of a Llama's activations are tens of times larger than the rest, and eight bits shared with them leave
nothing for the others. Dividing a channel by s where it is made and multiplying the weights that read it by s leaves
the function as it is and evens the channel out. It is made by a norm gain, by a row of v_proj, or by a row of up_proj,
so nothing is computed for it later. All s are powers of two: products and sums keep every bit.

SmoothQuant, Xiao et al., 2023, https://arxiv.org/abs/2211.10438; here for every input of a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.runtimes.graph_names import BIAS, PEAK, WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from drama_models.runtimes.llama_shape import LlamaShape

OUTLIER_EXPONENT = 1.5
"""A channel is an outlier where its peak, over its weights' reach, is at least 2 to twice this power of the median's.
Moving lesser ones costs the weights more than activations gain: 0.9977 for 0.9987 in the shape of drama-base."""


def smoothed(
    weights: Mapping[str, NDArray[Any]], shape: LlamaShape, peaks: Mapping[str, NDArray[np.float32]], layer: int
) -> dict[str, NDArray[np.float32]]:
    """One layer's tensors with its outlier channels evened out.

    Args:
        weights: of the model.
        shape: of the model.
        peaks: largest magnitude of every channel that enters a linear layer, (in,), over some texts; by the name of
            the first layer on that input and `.peak`.
        layer: number of the layer.

    Returns:
        The layer's gains, weights and biases by name, float32, copies.
    """
    prefix = f"layers.{layer}."
    own = {name: np.array(weights[name]) for name in weights if name.startswith(prefix)}
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."

    def fold(peak: NDArray[np.float32], readers: list[str], made_by: list[str], kv_heads: int | None = None) -> None:
        reach = np.max([np.abs(own[reader + WEIGHT]).max(axis=0) for reader in readers], axis=0)
        scale = _powers_of_two(_per_kv_channel(peak, shape, kv_heads), _per_kv_channel(reach, shape, kv_heads))
        for name in made_by:
            if name in own:
                own[name] /= scale[:, None] if own[name].ndim == 2 else scale
        wide = scale if kv_heads is None else _per_query_channel(scale, shape)
        for reader in readers:
            own[reader + WEIGHT] *= wide

    fold(
        peaks[f"{attention}q_proj{PEAK}"],
        [f"{attention}{part}_proj" for part in "qkv"],
        [f"{prefix}input_layernorm{WEIGHT}"],
    )
    made_by_value = [f"{attention}v_proj{ending}" for ending in (WEIGHT, BIAS)]
    fold(peaks[f"{attention}o_proj{PEAK}"], [f"{attention}o_proj"], made_by_value, shape.kv_heads)
    made_by_gain = [f"{prefix}post_attention_layernorm{WEIGHT}"]
    fold(peaks[f"{mlp}gate_proj{PEAK}"], [f"{mlp}gate_proj", f"{mlp}up_proj"], made_by_gain)
    made_by_up = [f"{mlp}up_proj{ending}" for ending in (WEIGHT, BIAS)]
    fold(peaks[f"{mlp}down_proj{PEAK}"], [f"{mlp}down_proj"], made_by_up)
    return own


def _powers_of_two(peak: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.float32]:
    """sqrt(peak / reach) in units of its median, to the nearest power of two: outliers end up like the other channels.

    1 for a channel that is no outlier, or where one of the two is 0.
    """
    usable = (peak > 0) & (reach > 0)
    exponent = np.log2(np.where(usable, peak, 1) / np.where(usable, reach, 1)) / 2
    exponent -= np.median(exponent[usable]) if usable.any() else 0
    is_outlier = usable & (np.abs(exponent) >= OUTLIER_EXPONENT)
    return np.exp2(np.where(is_outlier, np.round(exponent), 0)).astype(np.float32)


def _per_kv_channel(values: NDArray[np.float32], shape: LlamaShape, kv_heads: int | None) -> NDArray[np.float32]:
    """(H * d,) to (G * d,), the largest over the query heads that share a value head."""
    if kv_heads is None:
        return values
    return values.reshape(kv_heads, -1, shape.head_dim).max(axis=1).ravel()


def _per_query_channel(values: NDArray[np.float32], shape: LlamaShape) -> NDArray[np.float32]:
    """(G * d,) to (H * d,)."""
    each = values.reshape(shape.kv_heads, 1, shape.head_dim)
    return np.broadcast_to(each, (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)).ravel()
