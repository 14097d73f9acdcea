"""Weights in eight bits, and whether this machine multiplies signed ones exactly."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from drama_models.runtimes.graph_names import INT8, INT8_LIMIT, INT8_ZERO, SCALE
from drama_models.runtimes.onnx_session import memory_session
from drama_models.runtimes.packed_graph import CONTRIB, IR_VERSION, OPSET

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_SCALE = 1e-30  # of a row of zeros
PROBE_ROWS = (1, 2, 16)  # few and many rows go through different kernels
PROBE_SIZE = 64


def quantised_rows(name: str, weight: NDArray[np.float32], *, signed: bool) -> dict[str, NDArray[Any]]:
    """A weight in eight bits, each row in whole numbers of 1/127 of its largest magnitude.

    Args:
        name: of the linear layer.
        weight: (out, in), float32.
        signed: give signed bytes; else unsigned ones, 128 standing for 0.

    Returns:
        `name.int8`, (in, out), int8 or uint8, as the graph multiplies it, and `name.scale`, (out,), float32.
    """
    scale = np.maximum(np.abs(weight).max(axis=1), SMALLEST_SCALE).astype(np.float32) / np.float32(INT8_LIMIT)
    whole = np.rint(weight / scale[:, None])
    stored = whole.astype(np.int8) if signed else (whole + INT8_ZERO).astype(np.uint8)
    return {name + INT8: np.ascontiguousarray(stored.T), name + SCALE: scale}


@cache
def signed_bytes_are_exact() -> bool:
    """Whether ONNX Runtime sums products of unsigned and signed bytes without overflow on this processor.

    Two of the largest products are 64,770, more than the 16 bits in which x86 without VNNI adds them.
    """
    inputs = [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, PROBE_SIZE])]
    outputs = [helper.make_tensor_value_info("product", TensorProto.FLOAT, [None, PROBE_SIZE])]
    weight = np.full((PROBE_SIZE, PROBE_SIZE), INT8_LIMIT, dtype=np.int8)
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(np.float32(1)), "unit")]
    node = helper.make_node("MatMulIntegerToFloat", ["rows", "weight", "unit", "unit"], ["product"], domain=CONTRIB)
    graph = helper.make_graph([node], "probe", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    session = memory_session(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), {}, threads=1)
    exact = PROBE_SIZE * np.iinfo(np.uint8).max * INT8_LIMIT
    rows = (np.full((count, PROBE_SIZE), np.iinfo(np.uint8).max, dtype=np.uint8) for count in PROBE_ROWS)
    return all((session.run(None, {"rows": each})[0] == exact).all() for each in rows)
