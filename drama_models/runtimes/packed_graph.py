"""What the graphs of all encoders share: operators on one long row of tokens, and attention within each text.

Texts come one after another without padding: their tokens form one long row, every operator but attention works on
that row, and a loop over the texts attends within each; a text alone needs no loop. So nothing is computed for padding,
the memory of attention grows with the length and not with its square, and a text's vector does not depend on its batch
mates.

The token embedding is an input, so that its table can stay on disk. Operators are those that ONNX Runtime is fastest
with (`com.microsoft`); the portable graph of standard operators is made by the export room.

N tokens in all, B texts, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from drama_models.runtimes.graph_names import COUNT, EMBEDDED, ENDS, OUTPUT, STARTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

OPSET, IR_VERSION = 17, 9
CONTRIB = "com.microsoft"
ALONE = "alone"  # (), bool: whether there is one text


class PackedGraph:
    """A graph under construction.

    Args:
        hidden_size: D.
        heads: of attention.
        bidirectional: whether tokens see later ones.

    Attributes:
        external: names of the tensors that the session must be given; filled as the graph is built.
    """

    def __init__(self, hidden_size: int, heads: int, *, bidirectional: bool) -> None:
        self.bidirectional = bidirectional
        self.external: list[str] = []
        self._hidden_size, self._heads = hidden_size, heads
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._made: set[str] = set()  # values that are computed once, where they are first asked for

    def _finished(
        self, name: str, inputs: Sequence[ValueInfoProto] = (), outputs: Sequence[str] = (OUTPUT,)
    ) -> ModelProto:
        """The model of all nodes so far; weights are left as external tensors, to be handed to the session by name.

        Args:
            name: of the graph.
            inputs: besides the embedded tokens and where each text starts and ends.
            outputs: float32.
        """
        embedded = helper.make_tensor_value_info(EMBEDDED, TensorProto.FLOAT, [1, "tokens", self._hidden_size])
        count = helper.make_tensor_value_info(COUNT, TensorProto.INT64, [])
        edges = [helper.make_tensor_value_info(edge, TensorProto.INT64, ["texts", 1]) for edge in (STARTS, ENDS)]
        given = [embedded, *inputs, count, *edges]
        found = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
        constants = [numpy_helper.from_array(value, key) for key, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, name, given, found, self._initializers + constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="drama-models")

    def _op(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        number = len(self._nodes)
        names = list(outputs) or [f"{kind.lower()}_{number}"]
        self._nodes.append(helper.make_node(kind, inputs, names, name=f"node_{number}", **attributes))
        return names[0]

    def _constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self._constants[name] = np.asarray(value)
        return name

    def _tensor(self, name: str, sizes: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        """Declare a tensor that the session gets from outside."""
        tensor = TensorProto(name=name, data_type=kind, dims=sizes, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="safetensors")
        self._initializers.append(tensor)
        self.external.append(name)
        return name

    def _attended(self, query: str, key: str, value: str) -> str:
        """Attention of each text within itself, (1, N, D) from three of them."""
        alone = self._constant("one_text", np.array(1))
        if ALONE not in self._made:
            self._made.add(ALONE)
            self._op("Equal", [COUNT, alone], [ALONE])
        here = f"attended_{len(self._nodes)}"
        branches = {"then": self._alone(here, query, key, value), "else": self._each(here, query, key, value)}
        return self._op("If", [ALONE], **{f"{name}_branch": graph for name, graph in branches.items()})

    def _alone(self, here: str, query: str, key: str, value: str) -> GraphProto:
        """Attention over the whole row, which is one text: a loop of one round would cost a short query a twentieth."""
        node = self._attention_node([query, key, value], f"{here}.alone")
        return helper.make_graph([node], f"{here}.then", [], [_states(f"{here}.alone")])

    def _each(self, here: str, query: str, key: str, value: str) -> GraphProto:
        """A loop over the texts of the row."""
        empty, texts, joined = (f"{here}.{name}" for name in ("empty", "texts", "joined"))
        nodes = [
            helper.make_node("SequenceEmpty", [], [empty], name=empty, dtype=TensorProto.FLOAT),
            helper.make_node(
                "Loop", [COUNT, "", empty], [texts], name=texts, body=self._one_of_many(here, query, key, value)
            ),
            helper.make_node("ConcatFromSequence", [texts], [joined], name=joined, axis=1),
        ]
        return helper.make_graph(nodes, f"{here}.else", [], [_states(joined)])

    def _attention_node(self, inputs: Sequence[str], output: str) -> NodeProto:
        attributes: dict[str, Any] = {"num_heads": self._heads, "unidirectional": 0 if self.bidirectional else 1}
        return helper.make_node("MultiHeadAttention", inputs, [output], name=output, domain=CONTRIB, **attributes)

    def _one_of_many(self, here: str, query: str, key: str, value: str) -> GraphProto:
        """Body of the loop: cut one text out of the row, attend, append to the sequence of results."""
        nodes = []
        axis = self._constant("token_axis", np.ones(1, dtype=np.int64))

        def op(kind: str, inputs: list[str], output: str) -> str:
            nodes.append(helper.make_node(kind, inputs, [f"{here}.{output}"], name=f"{here}.{output}"))
            return f"{here}.{output}"

        start, end = (op("Gather", [edge, f"{here}.number"], f"{edge}_here") for edge in (STARTS, ENDS))
        parts = {"query": query, "key": key, "value": value}
        cut = [op("Slice", [states, start, end, axis], part) for part, states in parts.items()]
        nodes.append(self._attention_node(cut, f"{here}.attended"))
        longer = op("SequenceInsert", [f"{here}.sequence", f"{here}.attended"], "longer")
        again = op("Identity", [f"{here}.condition"], "again")
        sequence = [
            helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None)
            for name in (f"{here}.sequence", longer)
        ]
        flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in (f"{here}.condition", again)]
        number = helper.make_tensor_value_info(f"{here}.number", TensorProto.INT64, [])
        return helper.make_graph(nodes, here, [number, flags[0], sequence[0]], [flags[1], sequence[1]])


def _states(name: str) -> ValueInfoProto:
    """A float32 tensor of three dimensions."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None])
