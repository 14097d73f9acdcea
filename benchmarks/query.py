"""A single query by its number of tokens, beside sentence-transformers, and what of its time are matrix products.

    python -m benchmarks.query [--queries 12] [--rounds 3] [--out benchmarks/results/query.json]

Random weights in the drama-base shape. Systems take turns, each in a process of its own, and encode queries one by one;
their tokens count the prompt and both ends. Among the systems are sessions of ONNX Runtime that hold the linear layers
of the model and nothing else, each on rows of its own: what its kernels need for those, whatever a graph around them
does. Ratios of time are taken within a round, and their median is reported: smaller is better.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.inference import BASELINE, best_matrix_product, timed, usable_systems, useful_gflop
from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SHAPE, query_texts, write_model
from drama_models.runtimes.byte_products import quantised_rows, signed_bytes_are_exact
from drama_models.runtimes.graph_names import INT8_ZERO
from drama_models.runtimes.packed_graph import CONTRIB, IR_VERSION, OPSET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from onnx import ModelProto

    from benchmarks.inference import System
    from benchmarks.interleaved import Measured

LENGTHS = (9, 12, 16, 24, 32)
PRODUCTS = {"products of onnx": False, "products of onnx int8": True}  # whether in eight bits
Times = dict[int, list[float]]


class Queries:
    """A system over queries of several lengths; each call is a round, and returns the seconds of all rounds so far."""

    def __init__(self, system: System, folder: Path, queries: Mapping[int, list[str]]) -> None:
        self.embed, _ = system.load(folder, **system.settings)
        self.queries = queries
        self.embed(queries[LENGTHS[0]][:1])  # first calls allocate and choose kernels
        self.rounds: list[Times] = []

    def __call__(self) -> list[Times]:
        """One more round."""
        self.rounds.append(
            {length: [timed(partial(self.embed, [text])) for text in texts] for length, texts in self.queries.items()}
        )
        return self.rounds


class Products:
    """The linear layers of a folder's model on rows that depend on nothing; called as `Queries` are."""

    def __init__(self, folder: Path, repeats: int, *, int8: bool) -> None:
        from drama_models.runtimes.llama_runtime import read_llama
        from drama_models.runtimes.onnx_session import chosen_threads, memory_session

        shape, weights = read_llama(folder)
        sizes = shape.linear_sizes()
        self.widths = sorted({columns for _, columns in sizes.values()})
        self.held = held_weights({name: weights[f"{name}.weight"] for name in sizes}, int8=int8)
        self.session = memory_session(products_graph(sizes, self.held, int8=int8), self.held, chosen_threads())
        self.kind = np.uint8 if int8 else np.float32
        self.repeats, self.rounds = repeats, list[Times]()

    def __call__(self) -> list[Times]:
        """One more round."""
        times: Times = {}
        for length in LENGTHS:
            rows = {f"rows_{width}": np.full((1, length, width), 3, dtype=self.kind) for width in self.widths}
            times[length] = [timed(partial(self.session.run, None, rows)) for _ in range(self.repeats)]
        self.rounds.append(times)
        return self.rounds


def held_weights(weights: Mapping[str, NDArray[Any]], *, int8: bool) -> dict[str, NDArray[Any]]:
    """Weights as the graph multiplies them: (out, in) in float32, or (in, out) in bytes with a scale for each row."""
    if not int8:
        return {f"{name}.weight": weight for name, weight in weights.items()}
    signed = signed_bytes_are_exact()
    parts = [quantised_rows(name, np.asarray(weight), signed=signed) for name, weight in weights.items()]
    return {key: array for part in parts for key, array in part.items()}


def products_graph(sizes: Mapping[str, tuple[int, int]], held: Mapping[str, NDArray[Any]], *, int8: bool) -> ModelProto:
    """A graph of linear layers side by side, with the operators of the runtime's own graph.

    Args:
        sizes: (out, in) of each layer by name.
        held: their weights, which are left as external tensors.
        int8: whether these are bytes.
    """
    nodes, tensors = [], [external(name, array) for name, array in held.items()]
    for name, (_, columns) in sizes.items():
        rows = f"rows_{columns}"
        if int8:
            inputs = [rows, f"{name}.int8", "unit", f"{name}.scale", "zero", "weight_zero"]
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [name], domain=CONTRIB))
        else:
            inputs = [rows, f"{name}.weight"]
            nodes.append(helper.make_node("FusedMatMul", inputs, [name], domain=CONTRIB, transB=1))
    if int8:
        weight_zero = np.int8(0) if signed_bytes_are_exact() else np.uint8(INT8_ZERO)
        constants = {"unit": np.float32(1), "zero": np.uint8(INT8_ZERO), "weight_zero": weight_zero}
        tensors += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    kind = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    widths = sorted({columns for _, columns in sizes.values()})
    given = [helper.make_tensor_value_info(f"rows_{width}", kind, [1, "tokens", width]) for width in widths]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sizes]
    graph = helper.make_graph(nodes, "products", given, found, tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="drama-models")


def external(name: str, array: NDArray[Any]) -> TensorProto:
    """A tensor that the session is handed."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="safetensors")
    return tensor


def compare(queries: int, rounds: int) -> dict[str, Any]:
    """Run all systems in turn.

    Returns:
        Settings, machine, the best float32 product, the arithmetic of a query, and for each system milliseconds and the
        part of the baseline's time, both medians, by number of tokens.
    """
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        folder = Path(work) / "model"
        drawn = {length: query_texts(folder, [length], queries) for length in LENGTHS}
        workloads: dict[str, Any] = {
            name: (Queries, (system, folder, drawn)) for name, system in usable_systems().items()
        }
        workloads |= {name: (partial(Products, int8=int8), (folder, queries)) for name, int8 in PRODUCTS.items()}
        peak = best_matrix_product()
        interleave(workloads, 0)  # a conversion to eight bits is kept
        measured = interleave(workloads, rounds)
        peak = max(peak, best_matrix_product())
    return {
        "benchmark": "query",
        "command": f"python -m benchmarks.query --queries {queries} --rounds {rounds}",
        "settings": {"queries": queries, "rounds": rounds} | SHAPE,
        "machine": machine_record(),
        "best_matrix_product_gflops": round(peak, 1),
        "gflop": {length: round(useful_gflop([length]), 2) for length in LENGTHS},
        "systems": {name: row(own, measured[BASELINE]) for name, own in measured.items()},
    }


def row(own: Measured, baseline: Measured) -> dict[str, Any]:
    """Milliseconds of a query, and its part of the baseline's, by number of tokens."""
    times, pairs = {}, list(zip(own.result, baseline.result, strict=True))
    ratios = {}
    for length in LENGTHS:
        times[length] = round(1000 * statistics.median(value for each in own.result for value in each[length]), 1)
        parts = (statistics.median(our[length]) / statistics.median(their[length]) for our, their in pairs)
        ratios[length] = round(statistics.median(parts), 3)
    return {"ms": times, "time_ratio": ratios}


def main() -> None:
    """Compare, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=12, help="of each length in a round; default: 12")
    parser.add_argument("--rounds", type=int, default=3, help="times that each system does all; default: 3")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/query.json"), help="results file")
    options = parser.parse_args()
    record = compare(options.queries, options.rounds)
    print(f"{'ms (part of the baseline)':28}" + "".join(f"{length:>14}" for length in LENGTHS))  # noqa: T201
    for name, figures in record["systems"].items():
        cells = (f"{figures['ms'][length]:.1f} ({figures['time_ratio'][length]:.2f})" for length in LENGTHS)
        print(f"{name:28}" + "".join(f"{cell:>14}" for cell in cells))  # noqa: T201
    write_result(options.out, record)


if __name__ == "__main__":
    main()
