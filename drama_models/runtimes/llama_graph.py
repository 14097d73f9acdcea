"""A Llama encoder as a graph for ONNX Runtime on the CPU, built from its shape in milliseconds, weights outside.

`packed_graph` says how texts lie in it.

Products named in `quantised` run in int8: a token's inputs are scaled by their own largest magnitude, so no token
costs another its precision, and a weight's rows by theirs. A token's scale is multiplied in as late as possible, where
there is least to multiply: for queries and keys into their rotation, for the MLP's second branch into its result.

N tokens in all, B texts, D hidden, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from drama_models.runtimes.graph_names import (
    BIAS,
    COSINES,
    EMBEDDED,
    INT8,
    INT8_LIMIT,
    INT8_ZERO,
    OUTPUT,
    PEAK,
    SCALE,
    SINES,
    WEIGHT,
)
from drama_models.runtimes.packed_graph import CONTRIB, PackedGraph

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnx import ModelProto

    from drama_models.runtimes.llama_shape import LlamaShape

SMALLEST_MAGNITUDE = 1e-30  # of a token's inputs, so that zeros stay zeros
ZEROS = "zeros"  # (N,), uint8: that zero for each token


class Product(NamedTuple):
    """What a linear layer gives, (1, N, out)."""

    value: str
    scale: str = ""
    """Of each token, (1, N, 1), still to be multiplied with it; empty where there is none."""


class LlamaGraph(PackedGraph):
    """The graph of one encoder.

    Args:
        shape: of the model.
        biases: linear layers that have one, by name, such as `layers.0.self_attn.q_proj`.
        bidirectional: whether tokens see later ones.
        quantised: linear layers to run in int8, by name.
        signed: whether their weights are signed bytes; see `int8`.
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
        signed: bool = False,
        watched: bool = False,
    ) -> None:
        super().__init__(shape.hidden_size, shape.heads, bidirectional=bidirectional)
        self.shape, self.biases, self.quantised, self.watched = shape, biases, quantised, watched
        self.signed = signed
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

    def _linears(self, states: str, names: Sequence[str], scale: str = "") -> list[Product]:
        """Linear layers on one input, (1, N, in) to (1, N, out) each.

        Args:
            states: the input.
            names: of the layers.
            scale: of each token, by which the input is still to be multiplied.
        """
        if self.watched:
            peak = names[0] + PEAK
            self._op("ReduceMax", [self._op("Abs", [states])], [peak], axes=[0, 1], keepdims=0)
            self.peaks.append(peak)
        products, whole, total = [], "", ""
        if any(name in self.quantised for name in names):
            whole, own = self._in_bytes(states)
            total = self._op("Mul", [own, scale]) if scale else own
        for name in names:
            if name in self.quantised:
                product = self._int8_product(whole, total, name)
            else:
                product = self._float_product(states, scale, name)
            products.append(self._biased(product, name))
        return products

    def _float_product(self, states: str, scale: str, name: str) -> Product:
        weight = self._tensor(name + WEIGHT, self._sizes[name])
        return Product(self._op("FusedMatMul", [states, weight], domain=CONTRIB, transB=1), scale)

    def _int8_product(self, whole: str, scale: str, name: str) -> Product:
        rows, columns = self._sizes[name]
        weight = self._tensor(name + INT8, (columns, rows), TensorProto.INT8 if self.signed else TensorProto.UINT8)
        zero = self._constant("weight_zero", np.int8(0) if self.signed else np.uint8(INT8_ZERO))
        unit, input_zero = self._constant("unit", np.float32(1)), self._constant("zero", np.uint8(INT8_ZERO))
        inputs = [whole, weight, unit, self._tensor(name + SCALE, (rows,)), input_zero, zero]
        return Product(self._op("MatMulIntegerToFloat", inputs, domain=CONTRIB), scale)

    def _biased(self, product: Product, name: str) -> Product:
        if name not in self.biases:
            return product
        return Product(self._op("Add", [self._settled(product), self._tensor(name + BIAS, self._sizes[name][:1])]))

    def _settled(self, product: Product) -> str:
        """A product with its scale in it."""
        return self._op("Mul", [product.value, product.scale]) if product.scale else product.value

    def _in_bytes(self, states: str) -> tuple[str, str]:
        """Each token's inputs as bytes of their own scale, and that scale, (1, N, 1)."""
        smallest = self._constant("smallest", np.float32(SMALLEST_MAGNITUDE))
        highest = self._op("ReduceMax", [self._op("Abs", [states])], axes=[-1], keepdims=1)
        magnitude = self._op("Max", [highest, smallest])
        scale = self._op("Mul", [magnitude, self._constant("step", np.float32(1 / INT8_LIMIT))])
        row = self._op("Squeeze", [scale, self._constant("outer_axes", np.array([0, 2]))])
        if ZEROS not in self._made:
            self._made.add(ZEROS)
            zero = self._constant("zero_row", np.full(1, INT8_ZERO, dtype=np.uint8))
            self._op("Expand", [zero, self._op("Shape", [row])], [ZEROS])
        return self._op("QuantizeLinear", [states, row, ZEROS], axis=1), scale

    def _attention(self, states: str, prefix: str) -> str:
        """Self-attention of one layer, (1, N, D) to (1, N, D)."""
        query, key, value = self._linears(states, [f"{prefix}.self_attn.{part}_proj" for part in "qkv"])
        rotated, shared = [self._rotated(part) for part in (query, key)], self._shared_heads(self._settled(value))
        joined = self._attended(rotated[0], self._shared_heads(rotated[1]), shared)
        return self._settled(self._linears(joined, [f"{prefix}.self_attn.o_proj"])[0])

    def _rotated(self, product: Product) -> str:
        """Queries or keys turned by their positions; their scale goes into the angles, which are far fewer."""
        first = self._constant("first", np.zeros(1, dtype=np.int64))  # the rows given are already those of the tokens
        angles = [self._scaled_angles(name, product.scale) if product.scale else name for name in (COSINES, SINES)]
        return self._op("RotaryEmbedding", [product.value, first, *angles], domain=CONTRIB, interleaved=0)

    def _scaled_angles(self, name: str, scale: str) -> str:
        """(N, d / 2); made once for queries and keys, which have one input."""
        column, scaled = f"{scale}.column", f"{name}.{scale}"
        if column not in self._made:
            self._op("Squeeze", [scale, self._constant("first_axis", np.array([0]))], [column])
        if scaled not in self._made:
            self._op("Mul", [name, column], [scaled])
        self._made |= {column, scaled}
        return scaled

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
        active = self._op(
            "QuickGelu", [self._settled(gate)], domain=CONTRIB, alpha=1.0
        )  # x * sigmoid(x), which is silu
        opened = self._op("Mul", [active, up.value])  # the scale of `up` is left to the product that follows
        return self._settled(self._linears(opened, [f"{prefix}.mlp.down_proj"], up.scale)[0])
