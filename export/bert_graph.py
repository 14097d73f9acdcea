"""A BERT encoder as an ONNX graph of standard operators, with the inputs and the output of `llama_graph`.

Every layer is that of Devlin et al. (2019, https://arxiv.org/abs/1810.04805): norms come after the residual sum, the
activation is the exact GELU. Every token is of the first kind, so there is no third input.

B texts, T tokens, D hidden.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from drama_models.runtimes.bert_shape import EMBEDDING_NORM, KINDS, POSITIONS, WORDS, BertShape
from export.llama_graph import OUTPUT, GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto


def build_graph(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]], *, bidirectional: bool, half: bool = False
) -> ModelProto:
    """The whole encoder, weights inside.

    Args:
        config: of the model, as in config.json.
        weights: by BertModel's parameter names, in float32.
        bidirectional: whether tokens see later ones.
        half: matrices in float16 instead of float32; inputs and output keep their types.

    Raises:
        ModelFolderError: an activation or kind of positions that is not built here, or a weight beyond float16.
        KeyError: a weight is missing.
    """
    shape = BertShape.from_config(config)
    builder = _BertBuilder(shape, weights, half=half)
    states = builder.embedding()  # (B, T, D)
    bias = builder.attention_bias(bidirectional=bidirectional)
    for layer in range(shape.layers):
        prefix, last = f"encoder.layer.{layer}", layer == shape.layers - 1
        query, key, value = (
            builder.split_heads(states, f"{prefix}.attention.self.{name}", shape.heads)
            for name in ("query", "key", "value")
        )
        attended = builder.attended(query, key, value, bias)
        states = builder.added_and_normed(attended, states, f"{prefix}.attention.output")
        wide = builder.gelu(builder.linear(states, f"{prefix}.intermediate.dense"))
        states = builder.added_and_normed(wide, states, f"{prefix}.output", OUTPUT if last else None)
    return builder.finished("bert_encoder")


class _BertBuilder(GraphBuilder):
    """The pieces that a Llama does not have."""

    def embedding(self) -> str:
        """Sum of word, place and kind of every token, normed, (B, T, D)."""
        words = self.full(self.op("Gather", [self.matrix(WORDS), "input_ids"]))
        # A slice: ONNX Runtime rewrites a lookup of 0 ... T-1 to one whose start it then refuses.
        length = self.op("Gather", [self.op("Shape", ["input_ids"]), self.constant([1])], axis=0)  # (1,)
        first, rows = self.constant([0]), self.matrix(POSITIONS)
        places = self.full(self.op("Slice", [rows, first, length, first]))  # (T, D)
        kind = self.constant(self.weights[KINDS][0].astype("float32"))
        summed = self.op("Add", [words, self.op("Add", [places, kind])])
        return self.layer_norm(summed, EMBEDDING_NORM)

    def added_and_normed(self, states: str, residual: str, name: str, output: str | None = None) -> str:
        """norm(dense(states) + residual), (B, T, D)."""
        added = self.op("Add", [self.linear(states, f"{name}.dense"), residual])
        return self.layer_norm(added, f"{name}.LayerNorm", output)

    def layer_norm(self, states: str, name: str, output: str | None = None) -> str:
        inputs = [states, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        normed = self.op("LayerNormalization", inputs, output, axis=-1, epsilon=self.shape.epsilon)
        self._norms[normed] = name
        return normed

    def gelu(self, states: str) -> str:
        """The states times the normal distribution's share below them."""
        error = self.op("Erf", [self.op("Div", [states, self.scalar(math.sqrt(2))])])
        return self.op("Mul", [self.op("Mul", [states, self.op("Add", [error, self.scalar(1.0)])]), self.scalar(0.5)])
