"""A Llama encoder as a graph for ONNX Runtime on the CPU, built from its shape in milliseconds, weights outside.

`packed_graph` says how texts lie in it.

Products named in `quantised` run in int8: a token's inputs are scaled by their own largest magnitude, so no token
costs another its precision, and a weight's rows by theirs.

N tokens in all, B texts, D hidden, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from drama_models.runtimes.packed_graph import BIAS, CONTRIB, EMBEDDED, OUTPUT, WEIGHT, PackedGraph

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import ModelProto

    from drama_models.runtimes.llama_shape import LlamaShape

COSINES, SINES = "cosines", "sines"  # (N, d / 2) each, float32
SMALLEST_MAGNITUDE = 1e-30  # of a token's inputs, so that zeros stay zeros
INT8_LIMIT = 127
INT8_ZERO = 128  # stands for 0 in unsigned bytes; see `int8` for why weights are unsigned too
INT8, SCALE, PEAK = ".int8", ".scale", ".peak"  # more endings of a linear layer's tensors


class LlamaGraph(PackedGraph):
    """The graph of one encoder.

    Args:
        shape: of the model.
        biases: linear layers that have one, by name, such as `layers.0.self_attn.q_proj`.
        bidirectional: whether tokens see later ones.
        quantised: linear layers to run in int8, by name.
        watched: adds, for each input of linear layers, an output with each channel's largest
            magnitude over all tokens, named after the first of those layers.

    Attributes:
        external: names of the tensors that the session must be given; filled by `model`.
        peaks: names of the outputs that `watched` adds.
    """

    def __init__(
        self,
        shape: LlamaShape,
        biases: Collection[str],
        *,
        bidirectional: bool,
        quantised: Collection[str] = (),
        watched: bool = False,
    ) -> None:
        super().__init__(shape.hidden_size, shape.heads, bidirectional=bidirectional)
        self.shape, self.biases, self.quantised, self.watched = shape, biases, quantised, watched
        self.peaks: list[str] = []
        self._sizes = shape.linear_sizes()

    def model(self) -> ModelProto:
        """The whole graph; weights are left as external tensors, to be handed to the session by name."""
        states, added = EMBEDDED, None
        for layer in range(self.shape.layers):
            prefix = f"layers.{layer}"
            states, normed = self._add_and_norm(states, added, f"{prefix}.input_layernorm")
            attended = self._attention(normed, prefix)
            states, normed = self._add_and_norm(states, attended, f"{prefix}.post_attention_layernorm")
            added = self._mlp(normed, prefix)
        self._add_and_norm(states, added, "norm", OUTPUT)
        half = self.shape.head_dim // 2
        angles = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", half]) for name in (COSINES, SINES)]
        return self._finished("llama_encoder", angles, [OUTPUT, *self.peaks])

    def _add_and_norm(self, states: str, added: str | None, name: str, output: str = "") -> tuple[str, str]:
        """The residual stream with `added` in it, and its RMSNorm."""
        gain, epsilon = self._tensor(name + WEIGHT, (self.shape.hidden_size,)), self.shape.epsilon
        if added is None:  # an operator of ONNX Runtime's own that it keeps in the standard domain
            return states, self._op("SimplifiedLayerNormalization", [states, gain], axis=-1, epsilon=epsilon)
        normed, total = output or f"{name}.output", f"{name}.input"
        outputs = [normed, "", "", total]
        self._op("SkipSimplifiedLayerNormalization", [states, added, gain], outputs, domain=CONTRIB, epsilon=epsilon)
        return total, normed

    def _linears(self, states: str, names: Sequence[str]) -> list[str]:
        """Linear layers on one input, (1, N, in) to (1, N, out) each."""
        if self.watched:
            peak = names[0] + PEAK
            self._op("ReduceMax", [self._op("Abs", [states])], [peak], axes=[0, 1], keepdims=0)
            self.peaks.append(peak)
        scaled = self._scaled(states) if any(name in self.quantised for name in names) else ("", "")
        return [self._linear(states, scaled, name) for name in names]

    def _linear(self, states: str, scaled: tuple[str, str], name: str) -> str:
        rows, columns = self._sizes[name]
        if name in self.quantised:
            weight = self._tensor(name + INT8, (columns, rows), TensorProto.UINT8)
            scales = self._tensor(name + SCALE, (rows,))
            inputs = [scaled[0], weight, "unit", scales, "zero", "zero"]
            product = self._op("MatMulIntegerToFloat", inputs, domain=CONTRIB)
            product = self._op("Mul", [product, scaled[1]])
        else:
            weight = self._tensor(name + WEIGHT, (rows, columns))
            product = self._op("FusedMatMul", [states, weight], domain=CONTRIB, transB=1)
        if name not in self.biases:
            return product
        return self._op("Add", [product, self._tensor(name + BIAS, (rows,))])

    def _scaled(self, states: str) -> tuple[str, str]:
        """Each token's inputs as whole numbers of 1/127 of their largest magnitude, and that magnitude, (1, N, 1)."""
        self._constant("unit", np.float32(1 / INT8_LIMIT))
        self._constant("zero", np.uint8(INT8_ZERO))
        smallest = self._constant("smallest", np.float32(SMALLEST_MAGNITUDE))
        highest = self._op("ReduceMax", [states], axes=[-1], keepdims=1)
        lowest = self._op("ReduceMin", [states], axes=[-1], keepdims=1)
        magnitude = self._op("Max", [highest, self._op("Neg", [lowest]), smallest])
        return self._op("QuantizeLinear", [self._op("Div", [states, magnitude]), "unit", "zero"]), magnitude

    def _attention(self, states: str, prefix: str) -> str:
        """Self-attention of one layer, (1, N, D) to (1, N, D)."""
        query, key, value = self._linears(states, [f"{prefix}.self_attn.{part}_proj" for part in "qkv"])
        query, key = self._rotated(query), self._rotated(key)
        joined = self._attended(query, self._shared_heads(key), self._shared_heads(value))
        return self._linears(joined, [f"{prefix}.self_attn.o_proj"])[0]

    def _rotated(self, states: str) -> str:
        first = self._constant("first", np.zeros(1, dtype=np.int64))  # the rows given are already those of the tokens
        return self._op("RotaryEmbedding", [states, first, COSINES, SINES], domain=CONTRIB, interleaved=0)

    def _shared_heads(self, states: str) -> str:
        """Each KV head once for every query head that uses it: (1, N, G * d) to (1, N, H * d)."""
        shape = self.shape
        if shape.heads == shape.kv_heads:
            return states
        groups = self._constant("groups", np.array([0, 0, shape.kv_heads, 1, shape.head_dim]))
        copies = self._constant("copies", np.array([1, 1, 1, shape.heads // shape.kv_heads, 1]))
        flat = self._constant("flat", np.array([0, 0, shape.heads * shape.head_dim]))
        wide = self._op("Expand", [self._op("Reshape", [states, groups]), copies])
        return self._op("Reshape", [wide, flat])

    def _mlp(self, states: str, prefix: str) -> str:
        """down(silu(gate(x)) * up(x)), (1, N, D) to (1, N, D)."""
        gate, up = self._linears(states, [f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"])
        active = self._op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)  # x * sigmoid(x), which is silu
        return self._linears(self._op("Mul", [active, up]), [f"{prefix}.mlp.down_proj"])[0]
