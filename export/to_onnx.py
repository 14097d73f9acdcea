"""Writing ONNX graphs into a release folder, straight from its safetensors.

`onnx/model.onnx` is float32. `onnx/model_fp16.onnx` has half the size: weights and matrix products in float16, and
float32 wherever sums grow long or values large, so that ONNX Runtime runs it on any device; CPUs gain disk, not speed.
The graphs in eight bits are those of `int8_onnx`. All names are those that optimum and transformers.js ask for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import onnx
from safetensors import safe_open

from drama_models.model_folder import ONNX_GRAPH, read_json, weight_files
from drama_models.profile import attention_is_bidirectional
from export import bert_graph, llama_graph

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

FloatPrecision = Literal["fp32", "fp16"]
OnnxPrecision = Literal["fp32", "fp16", "int8"]
GRAPHS: dict[FloatPrecision, str] = {"fp32": ONNX_GRAPH, "fp16": "onnx/model_fp16.onnx"}
MAX_INLINE_BYTES = 1_800_000_000  # a graph with its weights inside must stay below protobuf's 2 GiB
EXTERNAL_DATA = "_data"  # appended to the graph's name; the name that optimum and transformers.js look for


def write_onnx(folder: Path, precision: FloatPrecision = "fp32") -> Path:
    """Export the model of a release folder in floating point.

    Args:
        folder: with `config.json` and safetensors; the graph is added to it.
        precision: of weights and matrix products; inputs and outputs are the same for all.

    Returns:
        Path of the graph.

    Raises:
        ModelFolderError: unreadable weights, a model that is no Llama or BERT that this exporter knows, or weights that
            float16 cannot hold.
    """
    config = read_json(folder / "config.json")
    bidirectional = attention_is_bidirectional(config, folder)
    build_graph = bert_graph.build_graph if config.get("model_type") == "bert" else llama_graph.build_graph
    graph = build_graph(config, _numpy_weights(folder), bidirectional=bidirectional, half=precision == "fp16")
    path = folder / GRAPHS[precision]
    save_graph(graph, path)
    return path


def save_graph(graph: ModelProto, path: Path) -> None:
    """Write a checked graph, with its weights in a file beside it where they are too large for one file."""
    large = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > MAX_INLINE_BYTES
    external_data = path.with_name(path.name + EXTERNAL_DATA)
    path.parent.mkdir(exist_ok=True)
    external_data.unlink(missing_ok=True)  # onnx would append to it
    onnx.save_model(graph, path, save_as_external_data=large, location=external_data.name if large else None)
    onnx.checker.check_model(str(path))


def external_data_files(folder: Path) -> dict[str, int]:
    """Graphs of a folder that have their weights beside them: number of weight files by the graph's name."""
    found = sorted((folder / ONNX_GRAPH).parent.glob(f"*.onnx{EXTERNAL_DATA}"))
    return {path.name.removesuffix(EXTERNAL_DATA): 1 for path in found}


def _numpy_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by LlamaModel's names; read through torch's view of the file, since NumPy has no bfloat16."""
    weights = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                if name != "lm_head.weight":
                    weights[name.removeprefix("model.")] = file.get_tensor(name).float().numpy()
    return weights
