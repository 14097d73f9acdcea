"""OpenVINO straight from the safetensors of a Llama: float32, and bfloat16 where the processor has it. No torch.

Ahead of the other runtimes for a query in 16 bits, and the only one in 16 bits that a CPU needs no torch for.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import DeviceError, MissingExtraError
from drama_models.pooling import pool
from drama_models.runtimes import CPU_BATCH_TOKENS
from drama_models.runtimes.llama_runtime import EMBEDDING, read_llama
from drama_models.runtimes.onnx_session import chosen_threads
from drama_models.runtimes.openvino_graph import COSINES, EMBEDDED, SEEN, SINES, OpenVinoGraph
from drama_models.runtimes.padding import embed_filled, pad

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.profile import Profile

FIRST_LENGTHS = (16, 64)  # weights are packed at the first call, for few and for many tokens each in its own way
HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRuntime:
    """A Llama on OpenVINO's CPU plugin; calls from many threads are safe.

    Args:
        folder: model folder with a Llama's config.json and safetensors.
        profile: attention direction and pooling.
        precision: "fp32" or "bf16".
        threads: of one call; by default the environment's DRAMA_THREADS, else every core this process may use.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: another precision, or bf16 on a processor that OpenVINO has no bf16 for.
        ModelFolderError: weights missing, damaged or of the wrong shape, or a Llama that the graph does not know.
    """

    name = "openvino"
    batch_tokens, packed = CPU_BATCH_TOKENS, False

    def __init__(self, folder: Path, profile: Profile, precision: str = "fp32", threads: int | None = None) -> None:
        if precision not in HINTS:
            raise DeviceError(f"runtime='openvino' computes in {', '.join(HINTS)}, not in {precision!r}.")
        core = _core()
        if precision == "bf16" and not has_bf16(core):
            raise DeviceError("This processor has no bf16 for OpenVINO; use precision='fp32', or runtime='torch'.")
        count = chosen_threads(threads)
        shape, weights = read_llama(folder)
        graph = OpenVinoGraph(shape, weights, bidirectional=profile.bidirectional)
        settings = {
            "INFERENCE_NUM_THREADS": count,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._shape, self._weights, self._pooling = shape, weights, profile.pooling
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with weights.passing_through():
            self._compiled = core.compile_model(graph.model(), "CPU", settings)
            for length in FIRST_LENGTHS:
                self._embed([np.zeros(length, dtype=np.int64)])
        self.precision = precision
        self.description = f"OpenVINO from safetensors, {precision}, threads: {count}"

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32; zeros for a text without tokens."""
        return embed_filled(batch, self._shape.hidden_size, self._embed)

    def _embed(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        ids, mask = pad(texts)
        embedded = self._weights.rows(EMBEDDING, ids.ravel()).reshape(*ids.shape, -1)  # (B, T, D)
        cosines, sines = (np.tile(half, 2) for half in self._shape.rotation(np.arange(ids.shape[1])))
        inputs = {EMBEDDED: embedded, COSINES: cosines, SINES: sines, SEEN: mask.astype(bool)[:, None, None]}
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()  # one for each call that runs at the same time
        states = request.infer(inputs, share_inputs=True)[0]
        pooled = pool(states, mask, self._pooling)  # a copy, so the request may be used again
        self._idle.put(request)
        return pooled.astype(np.float32, copy=False)


def has_bf16(core: Any | None = None) -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor, without emulating it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return "BF16" in (core or _core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _core() -> Any:
    try:
        from openvino import Core
    except ImportError:
        raise MissingExtraError("runtime='openvino'", "openvino") from None
    return Core()
