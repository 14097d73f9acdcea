"""A Llama encoder as a graph for OpenVINO, built from its shape, weights handed over where they lie.

Written in the patterns that OpenVINO's CPU plugin recognises and fuses: RMSNorm, rotation, scaled dot-product
attention. It has no attention within the texts of one long row, so texts come as a padded rectangle.

B texts, T tokens of the longest, D hidden, H query heads in G groups, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.runtimes.graph_names import BIAS, WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from drama_models.runtimes.llama_shape import LlamaShape

EMBEDDED, COSINES, SINES, SEEN = "embedded", "cosines", "sines", "seen"
"""Inputs: (B, T, D) float32, (T, d) float32 twice, (B, 1, 1, T) bool of real tokens."""


class OpenVinoGraph:
    """The graph of one encoder.

    Args:
        shape: of the model.
        weights: all but the token embedding, float32; not copied, so they must stay until the graph is compiled.
        bidirectional: whether tokens see later ones.
    """

    def __init__(self, shape: LlamaShape, weights: Mapping[str, NDArray[Any]], *, bidirectional: bool) -> None:
        from openvino import opset13

        self._ops, self.shape, self.weights, self.bidirectional = opset13, shape, weights, bidirectional

    def model(self) -> Any:
        """An `openvino.Model` from the inputs above to the last hidden states, (B, T, D), float32."""
        from openvino import Model, Type

        ops, shape = self._ops, self.shape
        states = embedded = ops.parameter([-1, -1, shape.hidden_size], Type.f32, name=EMBEDDED)
        angles = [ops.parameter([-1, shape.head_dim], Type.f32, name=name) for name in (COSINES, SINES)]
        seen = ops.parameter([-1, 1, 1, -1], Type.boolean, name=SEEN)
        for layer in range(shape.layers):
            prefix = f"layers.{layer}."
            normed = self._norm(states, f"{prefix}input_layernorm")
            states = ops.add(states, self._attention(normed, prefix + "self_attn.", angles, seen))
            normed = self._norm(states, f"{prefix}post_attention_layernorm")
            states = ops.add(states, self._mlp(normed, prefix + "mlp."))
        return Model([self._norm(states, "norm")], [embedded, *angles, seen], "llama_encoder")

    def _constant(self, values: NDArray[Any] | Sequence[int] | float, dtype: type[np.generic] = np.float32) -> Any:
        return self._ops.constant(np.asarray(values, dtype=dtype))

    def _weight(self, name: str) -> Any:
        from openvino import Tensor, Type

        values = self.weights[name]
        if values.flags.writeable:  # widened from another number format, and nobody else's to keep
            return self._constant(values)
        # With shape and type spelled out a tensor shares memory that may not be written, as that of a mapped file.
        return self._ops.constant(Tensor(values, values.shape, Type.f32), shared_memory=True)

    def _norm(self, states: Any, name: str) -> Any:
        ops = self._ops
        mean = ops.reduce_mean(ops.power(states, self._constant(2.0)), self._constant([-1], np.int64), keep_dims=True)
        root = ops.sqrt(ops.add(mean, self._constant(self.shape.epsilon)))
        return ops.multiply(ops.divide(states, root), self._weight(name + WEIGHT))

    def _linear(self, states: Any, name: str) -> Any:
        product = self._ops.matmul(states, self._weight(name + WEIGHT), transpose_a=False, transpose_b=True)
        bias = name + BIAS
        return self._ops.add(product, self._weight(bias)) if bias in self.weights else product

    def _attention(self, states: Any, prefix: str, angles: Sequence[Any], seen: Any) -> Any:
        """Self-attention of one layer, (B, T, D) to (B, T, D)."""
        ops, shape = self._ops, self.shape
        query = self._heads(self._linear(states, f"{prefix}q_proj"), shape.heads)
        key, value = (self._heads(self._linear(states, f"{prefix}{part}_proj"), shape.kv_heads) for part in "kv")
        key, value = self._shared(self._rotated(key, angles)), self._shared(value)
        mask = seen if self.bidirectional else self._earlier(seen)
        attended = ops.scaled_dot_product_attention(self._rotated(query, angles), key, value, mask)
        rows = ops.transpose(attended, self._constant([0, 2, 1, 3], np.int64))
        flat = self._constant([0, 0, shape.heads * shape.head_dim], np.int64)
        return self._linear(ops.reshape(rows, flat, special_zero=True), f"{prefix}o_proj")

    def _heads(self, states: Any, count: int) -> Any:
        """(B, T, heads * d) to (B, heads, T, d)."""
        split = self._constant([0, 0, count, self.shape.head_dim], np.int64)
        parts = self._ops.reshape(states, split, special_zero=True)
        return self._ops.transpose(parts, self._constant([0, 2, 1, 3], np.int64))

    def _rotated(self, states: Any, angles: Sequence[Any]) -> Any:
        ops, (cosines, sines) = self._ops, angles
        first, second = ops.split(states, ops.constant(np.array(3, dtype=np.int64)), 2).outputs()
        turned = ops.concat([ops.negative(second), first], 3)
        return ops.add(ops.multiply(states, cosines), ops.multiply(turned, sines))

    def _shared(self, states: Any) -> Any:
        """Each KV head once for every query head that uses it: (B, G, T, d) to (B, H, T, d)."""
        shape, ops = self.shape, self._ops
        if shape.heads == shape.kv_heads:
            return states
        copies = shape.heads // shape.kv_heads
        wide = ops.unsqueeze(states, self._constant([2], np.int64))  # (B, G, 1, T, d)
        wide = ops.broadcast(wide, self._constant([1, 1, copies, 1, 1], np.int64), broadcast_spec="BIDIRECTIONAL")
        flat = self._constant([0, shape.heads, -1, shape.head_dim], np.int64)
        return ops.reshape(wide, flat, special_zero=True)

    def _earlier(self, seen: Any) -> Any:
        """The mask of real tokens without those after the one that looks, (B, 1, T, T), bool."""
        ops = self._ops
        count = ops.gather(
            ops.shape_of(seen, output_type="i64"), self._constant(3, np.int64), self._constant(0, np.int64)
        )
        numbers = ops.range(self._constant(0, np.int64), count, self._constant(1, np.int64), "i64")
        looking = ops.unsqueeze(numbers, self._constant([1], np.int64))
        return ops.logical_and(seen, ops.less_equal(numbers, looking))

    def _mlp(self, states: Any, prefix: str) -> Any:
        """down(silu(gate(x)) * up(x)), (B, T, D) to (B, T, D)."""
        gate, up = (self._linear(states, f"{prefix}{part}_proj") for part in ("gate", "up"))
        return self._linear(self._ops.multiply(self._ops.swish(gate), up), f"{prefix}down_proj")
