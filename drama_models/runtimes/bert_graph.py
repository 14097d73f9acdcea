"""A BERT encoder as a graph for ONNX Runtime on the CPU, built from its shape in milliseconds, weights outside.

The sum of word, position and type embeddings is an input; `packed_graph` says how texts lie in it. Every layer is that
of Devlin et al. (2019, https://arxiv.org/abs/1810.04805): norms come after the residual sum, the activation is the
exact GELU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drama_models.runtimes.bert_shape import EMBEDDING_NORM
from drama_models.runtimes.graph_names import BIAS, EMBEDDED, OUTPUT, WEIGHT
from drama_models.runtimes.packed_graph import CONTRIB, PackedGraph

if TYPE_CHECKING:
    from onnx import ModelProto

    from drama_models.runtimes.bert_shape import BertShape

ATTENTION = ("query", "key", "value")


class BertGraph(PackedGraph):
    """The graph of one encoder.

    Args:
        shape: of the model.
        bidirectional: whether tokens see later ones.
    """

    def __init__(self, shape: BertShape, *, bidirectional: bool) -> None:
        super().__init__(shape.hidden_size, shape.heads, bidirectional=bidirectional)
        self.shape = shape
        self._shapes = shape.weight_shapes()

    def model(self) -> ModelProto:
        """The whole graph; see `PackedGraph.external` for what the session must be given."""
        gain, shift = self._both(EMBEDDING_NORM)
        states = self._op("LayerNormalization", [EMBEDDED, gain, shift], axis=-1, epsilon=self.shape.epsilon)
        for layer in range(self.shape.layers):
            prefix = f"encoder.layer.{layer}"
            query, key, value = (self._linear(states, f"{prefix}.attention.self.{name}") for name in ATTENTION)
            attended = self._attended(query, key, value)
            states = self._added_and_normed(attended, states, f"{prefix}.attention.output")
            weight, bias = self._both(f"{prefix}.intermediate.dense")
            wide = self._op("BiasGelu", [self._product(states, weight), bias], domain=CONTRIB)
            states = self._added_and_normed(wide, states, f"{prefix}.output")
        self._op("Identity", [states], [OUTPUT])
        return self._finished("bert_encoder")

    def _both(self, name: str) -> tuple[str, str]:
        """Weight and bias of a linear layer or a norm."""
        weight, bias = (self._tensor(name + part, self._shapes[name + part]) for part in (WEIGHT, BIAS))
        return weight, bias

    def _product(self, states: str, weight: str) -> str:
        return self._op("FusedMatMul", [states, weight], domain=CONTRIB, transB=1)

    def _linear(self, states: str, name: str) -> str:
        """(1, N, in) to (1, N, out)."""
        weight, bias = self._both(name)
        return self._op("Add", [self._product(states, weight), bias])

    def _added_and_normed(self, states: str, residual: str, name: str) -> str:
        """norm(dense(states) + residual), (1, N, D)."""
        weight, bias = self._both(f"{name}.dense")
        gain, shift = self._both(f"{name}.LayerNorm")
        inputs = [self._product(states, weight), residual, gain, shift, bias]
        return self._op("SkipLayerNormalization", inputs, domain=CONTRIB, epsilon=self.shape.epsilon)
