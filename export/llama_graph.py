"""A Llama encoder as an ONNX graph of standard operators, built from its configuration and weights; no torch.

Inputs `input_ids` and `attention_mask` (int64, batch and length free), output `last_hidden_state` (float32): the
contract of optimum and of every server that reads its folders. Bidirectional or causal, grouped-query or multi-head,
rotary positions with or without Llama 3's scaling. Operator set 17 is what the oldest of those servers' runtimes
knows.

Optionally in half precision: matrices are stored and multiplied in float16, while norms, attention and the residual
stream stay in float32, where float16 would overflow or lose the small summands. A product that could leave float16 for
some text gets each token's states divided by their largest magnitude (`float16_range`).

What is given in eight bits (`name.int8` with `name.scale`, see `int8`) runs in eight bits: a token's inputs are scaled
by their own largest magnitude, so that a text's vector depends neither on its batch mates nor on padding, as it would
with DynamicQuantizeLinear, which scales a whole batch at once.

B texts, T tokens, D hidden, H query heads in G groups, d head size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from drama_models.errors import ModelFolderError
from drama_models.runtimes.graph_names import INT8, INT8_LIMIT, INT8_ZERO, SCALE
from drama_models.runtimes.llama_graph import SMALLEST_MAGNITUDE
from drama_models.runtimes.llama_shape import LlamaShape
from export.float16_range import ALLOWED, fitting_scale, largest_after_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

    from drama_models.runtimes.bert_shape import BertShape

OPSET, IR_VERSION = 17, 8
BLOCKED = -1e9  # added to a score that must not count; far below any score, and safe to add to
OUTPUT = "last_hidden_state"
EMBEDDING = "embed_tokens"


def build_graph(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], *, bidirectional: bool, half: bool = False
) -> ModelProto:
    """The whole encoder, weights inside.

    Args:
        config: of the model, as in config.json.
        weights: by LlamaModel's parameter names without prefix; converted to the precision of the graph. Linear layers
            and the token embedding may be in eight bits instead, as `quantised_rows` makes them.
        bidirectional: whether tokens see later ones.
        half: matrices in float16 instead of float32; inputs and output keep their types.

    Raises:
        ModelFolderError: an activation or rotary scaling that is not built here, or a weight beyond float16.
        KeyError: a weight is missing.
    """
    shape = LlamaShape.from_config(config)
    builder = GraphBuilder(shape, weights, half=half)
    states = builder.embedding()  # (B, T, D)
    bias = builder.attention_bias(bidirectional=bidirectional)
    rotation = builder.rotation(shape.frequencies)
    for layer in range(shape.layers):
        prefix = f"layers.{layer}"
        attended = builder.attention(builder.rms_norm(states, f"{prefix}.input_layernorm"), prefix, bias, rotation)
        states = builder.op("Add", [states, attended])
        widened = builder.mlp(builder.rms_norm(states, f"{prefix}.post_attention_layernorm"), prefix)
        states = builder.op("Add", [states, widened])
    builder.rms_norm(states, "norm", OUTPUT)
    return builder.finished("llama_encoder")


class GraphBuilder:
    """Collects nodes and initializers; each method adds a piece and returns the name of its output."""

    INPUTS = ("input_ids", "attention_mask")

    def __init__(self, shape: LlamaShape | BertShape, weights: Mapping[str, NDArray[Any]], *, half: bool) -> None:
        self.shape, self.weights, self.half = shape, weights, half
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._scaled: dict[str, tuple[str, str]] = {}
        self._norms: dict[str, str] = {}  # by the name of their output

    def finished(self, name: str) -> ModelProto:
        """The model of all nodes, whose last one made OUTPUT."""
        inputs = [helper.make_tensor_value_info(each, TensorProto.INT64, ["batch", "length"]) for each in self.INPUTS]
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", "length", self.shape.hidden_size])
        graph = helper.make_graph(self.nodes, name, inputs, [output], self.initializers)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="drama-models")

    def op(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """A node of standard operators."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: NDArray[Any] | list[int]) -> str:
        """A constant, stored once; whole numbers from a list."""
        array = np.ascontiguousarray(np.array(value, dtype=np.int64) if isinstance(value, list) else value)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def scalar(self, value: float) -> str:
        """A float32 number."""
        return self.constant(np.array(value, dtype=np.float32))

    def weight(self, name: str) -> str:
        """A vector, in float32."""
        return self._stored(name, np.asarray(self.weights[name]).astype(np.float32))

    def matrix(self, name: str, *, transpose: bool = False) -> str:
        """A matrix, in the precision of the graph."""
        array = np.asarray(self.weights[name]).astype(np.float32)
        if self.half:
            if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
                raise ModelFolderError(f"Weight {name!r} has values beyond float16; leave fp16 out of the graphs.")
            array = array.astype(np.float16)
        return self._stored(name, array.T if transpose else array)

    def _stored(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def full(self, states: str) -> str:
        """States in float32."""
        return self.op("Cast", [states], to=TensorProto.FLOAT) if self.half else states

    def linear(self, states: str, name: str) -> str:
        """(..., in) to (..., out); the stored weight is (out, in)."""
        in_int8 = name + INT8 in self.weights
        if in_int8:
            product = self.int8_product(states, name)
        elif self.half:
            product = self.half_product(states, name)
        else:
            product = self.op("MatMul", [states, self.matrix(f"{name}.weight", transpose=True)])
        if f"{name}.bias" not in self.weights:
            return product
        if in_int8:  # an Add after scales of its own for each token is fused by ONNX Runtime as if there were one
            negative = self._stored(f"{name}.bias", -np.asarray(self.weights[f"{name}.bias"]).astype(np.float32))
            return self.op("Sub", [product, negative])
        return self.op("Add", [product, self.weight(f"{name}.bias")])

    def half_product(self, states: str, name: str) -> str:
        """(..., in) to (..., out) in float16, from float32 to float32."""
        stored, unit = self.matrix(f"{name}.weight", transpose=True), None
        if not self.fits_half(states, name):
            scale = fitting_scale(np.asarray(self.weights[f"{name}.weight"]).astype(np.float32))
            unit = self.op("Mul", [self.magnitude(states), self.scalar(1 / scale)])
            states = self.op("Div", [states, unit])
        half = self.op("Cast", [states], to=TensorProto.FLOAT16)
        product = self.full(self.op("MatMul", [half, stored]))
        return product if unit is None else self.op("Mul", [product, unit])

    def fits_half(self, states: str, name: str) -> bool:
        """Whether the states come from a norm behind which no text makes this layer leave float16."""
        if states not in self._norms:
            return False
        norm = self._norms[states]
        rows = (f"{name}.weight", f"{norm}.weight", f"{norm}.bias")
        arrays = (np.asarray(self.weights[row]).astype(np.float32) for row in rows if row in self.weights)
        return largest_after_norm(*arrays) <= ALLOWED

    def int8_product(self, states: str, name: str) -> str:
        """(..., in) to (..., out) in whole numbers; the stored weight is (in, out), unsigned."""
        zero = self.constant(np.array(INT8_ZERO, dtype=np.uint8))
        whole, magnitude = self.scaled(states)
        weight = self._stored(name + INT8, np.asarray(self.weights[name + INT8]))
        sums = self.op("Cast", [self.op("MatMulInteger", [whole, weight, zero, zero])], to=TensorProto.FLOAT)
        scale = self._stored(name + SCALE, np.asarray(self.weights[name + SCALE]) / np.float32(INT8_LIMIT))
        return self.op("Mul", [sums, self.op("Mul", [magnitude, scale])])

    def scaled(self, states: str) -> tuple[str, str]:
        """Each token's states as whole numbers of 1/127 of their largest magnitude, and that magnitude, (..., 1)."""
        if states not in self._scaled:
            magnitude = self.magnitude(states)
            unit, zero = self.scalar(1 / INT8_LIMIT), self.constant(np.array(INT8_ZERO, dtype=np.uint8))
            whole = self.op("QuantizeLinear", [self.op("Div", [states, magnitude]), unit, zero])
            self._scaled[states] = whole, magnitude
        return self._scaled[states]

    def magnitude(self, states: str) -> str:
        """Each token's largest, above zero, (..., 1)."""
        largest = self.op("ReduceMax", [self.op("Abs", [states])], axes=[-1], keepdims=1)
        return self.op("Max", [largest, self.scalar(SMALLEST_MAGNITUDE)])

    def embedding(self) -> str:
        """Rows of the tokens, (B, T, D), float32."""
        if EMBEDDING + INT8 not in self.weights:
            return self.full(self.op("Gather", [self.matrix(f"{EMBEDDING}.weight"), "input_ids"]))
        table = self._stored(EMBEDDING + INT8, np.asarray(self.weights[EMBEDDING + INT8]))
        scales = self._stored(EMBEDDING + SCALE, np.asarray(self.weights[EMBEDDING + SCALE])[:, None])
        whole = self.op("Cast", [self.op("Gather", [table, "input_ids"])], to=TensorProto.FLOAT)
        centred = self.op("Sub", [whole, self.scalar(INT8_ZERO)])
        return self.op("Mul", [centred, self.op("Gather", [scales, "input_ids"])])

    def rms_norm(self, states: str, name: str, output: str | None = None) -> str:
        """W * x / sqrt(mean(x^2) + eps), in the shape that ONNX Runtime recognises and fuses."""
        square = self.op("Pow", [states, self.scalar(2.0)])
        mean = self.op("ReduceMean", [square], axes=[-1], keepdims=1)
        root = self.op("Sqrt", [self.op("Add", [mean, self.scalar(self.shape.epsilon)])])
        normed = self.op("Mul", [self.op("Div", [states, root]), self.weight(f"{name}.weight")], output)
        self._norms[normed] = name
        return normed

    def positions(self) -> str:
        """0 ... T-1, int64, (T,)."""
        length = self.op("Gather", [self.op("Shape", ["input_ids"]), self.constant(np.array(1))], axis=0)
        return self.op("Range", [self.constant(np.array(0)), length, self.constant(np.array(1))])

    def rotation(self, frequencies: NDArray[np.float32]) -> tuple[str, str]:
        """Cosine and sine of every position and frequency, (T, d / 2) each."""
        column = self.op("Cast", [self.op("Unsqueeze", [self.positions(), self.constant([1])])], to=TensorProto.FLOAT)
        angles = self.op("Mul", [column, self.constant(frequencies[None])])
        return self.op("Cos", [angles]), self.op("Sin", [angles])

    def attention_bias(self, *, bidirectional: bool) -> str:
        """0 where a query may look at a key, BLOCKED elsewhere: (B, 1, 1, T), or (B, 1, T, T) if causal."""
        real = self.op("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        padding = self.op("Mul", [self.op("Sub", [self.scalar(1.0), real]), self.scalar(BLOCKED)])
        bias = self.op("Unsqueeze", [padding, self.constant([1, 2])])
        if bidirectional:
            return bias
        query = self.op("Unsqueeze", [self.positions(), self.constant([1])])
        key = self.op("Unsqueeze", [self.positions(), self.constant([0])])
        later = self.op("Cast", [self.op("Greater", [key, query])], to=TensorProto.FLOAT)  # (T, T)
        return self.op("Add", [bias, self.op("Mul", [later, self.scalar(BLOCKED)])])

    def attention(self, states: str, prefix: str, bias: str, rotation: tuple[str, str]) -> str:
        """Self-attention of one layer, (B, T, D) to (B, T, D)."""
        query = self.rotated(self.split_heads(states, f"{prefix}.self_attn.q_proj", self.heads), rotation)
        key = self.rotated(self.split_heads(states, f"{prefix}.self_attn.k_proj", self.kv_heads), rotation)
        value = self.split_heads(states, f"{prefix}.self_attn.v_proj", self.kv_heads)
        joined = self.attended(query, self.shared_heads(key), self.shared_heads(value), bias)
        return self.linear(joined, f"{prefix}.self_attn.o_proj")

    def attended(self, query: str, key: str, value: str, bias: str) -> str:
        """Values by their queries' attention: (B, H, T, d) each, to (B, T, H * d)."""
        scaled = self.op("Mul", [query, self.scalar(1 / math.sqrt(self.head_dim))])
        scores = self.op("MatMul", [scaled, self.op("Transpose", [key], perm=[0, 1, 3, 2])])  # (B, H, T, T)
        shares = self.op("Softmax", [self.op("Add", [scores, bias])], axis=-1)
        context = self.op("Transpose", [self.op("MatMul", [shares, value])], perm=[0, 2, 1, 3])  # (B, T, H, d)
        return self.op("Reshape", [context, self.constant([0, 0, self.heads * self.head_dim])])

    def split_heads(self, states: str, name: str, heads: int) -> str:
        """Project, then (B, T, heads * d) to (B, heads, T, d)."""
        split = self.op("Reshape", [self.linear(states, name), self.constant([0, 0, heads, self.head_dim])])
        return self.op("Transpose", [split], perm=[0, 2, 1, 3])

    def rotated(self, states: str, rotation: tuple[str, str]) -> str:
        """Rotary positions on (B, heads, T, d): the two halves of each head turn against each other."""
        cosine, sine = rotation
        half, whole = self.head_dim // 2, self.head_dim
        last = self.constant([-1])
        first = self.op("Slice", [states, self.constant([0]), self.constant([half]), last])
        second = self.op("Slice", [states, self.constant([half]), self.constant([whole]), last])
        turned = self.op("Sub", [self.op("Mul", [first, cosine]), self.op("Mul", [second, sine])])
        other = self.op("Add", [self.op("Mul", [second, cosine]), self.op("Mul", [first, sine])])
        return self.op("Concat", [turned, other], axis=-1)

    def shared_heads(self, states: str) -> str:
        """Each KV head once for every query head that uses it: (B, G, T, d) to (B, H, T, d)."""
        shared = self.heads // self.kv_heads
        if shared == 1:
            return states
        wide = self.op("Unsqueeze", [states, self.constant([2])])  # (B, G, 1, T, d)
        copies = self.op("Expand", [wide, self.constant([1, 1, shared, 1, 1])])
        return self.op("Reshape", [copies, self.constant([0, self.heads, -1, self.head_dim])])

    def mlp(self, states: str, prefix: str) -> str:
        """down(silu(gate(x)) * up(x)), (B, T, D) to (B, T, D)."""
        gate = self.linear(states, f"{prefix}.mlp.gate_proj")
        active = self.op("Mul", [gate, self.op("Sigmoid", [gate])])
        return self.linear(
            self.op("Mul", [active, self.linear(states, f"{prefix}.mlp.up_proj")]), f"{prefix}.mlp.down_proj"
        )
