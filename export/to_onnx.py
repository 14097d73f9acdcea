"""Writing `onnx/model.onnx` into a release folder, straight from its safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from safetensors import safe_open

from drama_models.model_folder import ONNX_GRAPH, read_json, weight_files
from drama_models.profile import attention_is_bidirectional
from export.llama_graph import build_graph

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

EXTERNAL_DATA = "model.onnx_data"  # the name that optimum and transformers.js look for
MAX_INLINE_BYTES = 1_800_000_000  # a graph with its weights inside must stay below protobuf's 2 GiB


def write_onnx(folder: Path) -> Path:
    """Export the model of a release folder in float32.

    Args:
        folder: with `config.json` and safetensors; `onnx/model.onnx` is added to it.

    Returns:
        Path of the graph.

    Raises:
        ModelFolderError: unreadable weights, or a model that is not a Llama this exporter knows.
    """
    config = read_json(folder / "config.json")
    weights = _numpy_weights(folder)
    graph = build_graph(config, weights, bidirectional=attention_is_bidirectional(config, folder))
    path = folder / ONNX_GRAPH
    path.parent.mkdir(exist_ok=True)
    large = sum(4 * array.size for array in weights.values()) > MAX_INLINE_BYTES
    onnx.save_model(graph, path, save_as_external_data=large, location=EXTERNAL_DATA if large else None)
    onnx.checker.check_model(str(path))
    return path


def _numpy_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by LlamaModel's names; read through torch's view of the file, since NumPy has no bfloat16."""
    weights = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                if name != "lm_head.weight":
                    weights[name.removeprefix("model.")] = file.get_tensor(name).float().numpy()
    return weights
