"""Sessions of ONNX Runtime on the CPU: threads set once, weights handed over without a copy, errors in one sentence.

A session packs the weights of its matrix products in an order of its own, which takes most of the time of a start. It
can keep what it packed, and the next one maps those files and packs nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from drama_models.errors import DeviceError, ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from onnx import ModelProto

THREADS_VARIABLE = "DRAMA_THREADS"
GRAPH_FILE, WEIGHTS_FILE = "graph.onnx", "weights.bin"
LEAST_BYTES = 1024  # of a tensor that is kept beside the graph instead of in it
ERRORS_ONLY = 3


def chosen_threads(threads: int | None = None) -> int:
    """Threads of one call: the argument, else the environment's DRAMA_THREADS, else the cores this process may use.

    Raises:
        DeviceError: not a whole number above 0.
    """
    asked = os.environ.get(THREADS_VARIABLE) if threads is None else threads
    if not asked and asked != 0:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not str(asked).isdecimal() or int(asked) < 1:
        name = THREADS_VARIABLE if threads is None else "threads"
        raise DeviceError(f"{name}={asked!r} must be a whole number above 0; leave it out to use every core.")
    return int(asked)


def file_session(path: Path, threads: int) -> Any:
    """A session over a graph file.

    Raises:
        ModelFolderError: ONNX Runtime cannot read it.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), _options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        reason = " ".join(str(error).split())[:200]
        raise ModelFolderError(f"{path} cannot be read as an ONNX graph ({reason}); export it again.") from None


def memory_session(
    model: ModelProto, weights: Mapping[str, NDArray[Any]], threads: int, keep_in: Path | None = None
) -> Any:
    """A session over a graph built here.

    Args:
        model: with external tensors.
        weights: every external tensor by name; not copied, so they must stay as they are while the session lives.
        threads: of one call.
        keep_in: folder to write the optimised graph and the packed weights to, for `kept_session`.
    """
    import onnxruntime

    options = _options(threads)
    if keep_in is not None:
        options.optimized_model_filepath = str(keep_in / GRAPH_FILE)
        for setting, value in (
            ("optimized_model_external_initializers_file_name", WEIGHTS_FILE),
            ("optimized_model_external_initializers_min_size_in_bytes", str(LEAST_BYTES)),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(f"session.{setting}", value)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kept_session(folder: Path, threads: int) -> Any:
    """The session that `memory_session` kept in a folder, its weights mapped from there.

    The files must be whole: ONNX Runtime maps them without looking at their size.

    Raises:
        Exception: ONNX Runtime's own, if it cannot read the graph.
    """
    import onnxruntime

    options = _options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised already
    return onnxruntime.InferenceSession(str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"])


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    return options
