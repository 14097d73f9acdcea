"""torch over a folder's safetensors: packed texts, prepacked weights, never the folder's code.

Llama-shaped folders run on our own lean forward pass. Others run on transformers' model, packed where it can be and
padded where it cannot; their linear layers are prepacked on a CPU too. float32, bfloat16 or float16; int8 is ONNX
Runtime's, whose conversion is measured before it is trusted.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from drama_models.errors import DeviceError, MissingExtraError
from drama_models.hardware import train_in_bf16
from drama_models.model_folder import read_json
from drama_models.runtimes import CPU_BATCH_TOKENS
from drama_models.runtimes.padding import embed_filled
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from drama_models.profile import Profile
    from drama_models.runtimes.packed_llama import PackedLlama

logger = logging.getLogger(__name__)

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GPU_BATCH_TOKENS = 16_384


class TorchRuntime:
    """A model ready to embed; calls from many threads are safe.

    Args:
        folder: model folder.
        profile: attention direction and pooling.
        device: such as "cpu" or "cuda"; None takes a GPU if there is one that works.
        dtype: "float32", "bfloat16" or "float16"; pooling is always in float32.
        compile: let torch.compile fuse what is between matrix products; needs a C++ compiler, and seconds at the start.

    Raises:
        MissingExtraError: torch, or transformers where it is needed, is not installed.
        ModelFolderError: weights missing, damaged or of the wrong shape.
        AttentionDirectionError: the profile's direction cannot be honoured.
        DeviceError: the device is not there, or the number format is not one of this runtime.
    """

    name = description = "torch"

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        device: str | None = None,
        dtype: str = "float32",
        *,
        compile: bool = False,  # noqa: A002
    ) -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtraError("runtime='torch'", "torch") from None
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise DeviceError(f"runtime='torch' computes in {known}, not in {dtype!r}; runtime='onnx' has int8.")
        self._torch, self._hidden_size = torch, profile.hidden_size
        self._load = partial(load_backend, folder, profile, dtype=getattr(torch, dtype), compiled=compile)
        self.device = self._settle(device)
        layout = "packed" if self.packed else "padded"
        self.precision = DTYPES[dtype]
        self.description = f"torch, {dtype}, {layout}, on {self.device}"
        self.batch_tokens = CPU_BATCH_TOKENS if self.device == "cpu" else GPU_BATCH_TOKENS
        if self.device == "cpu" and dtype != "float32" and not train_in_bf16("auto"):
            warn_caller(f"This processor has no instructions for {dtype}, which is slow here; float32 is faster.")

    @property
    def packed(self) -> bool:
        """Whether a batch costs its real tokens only, so that its budget need not count padding."""
        return self._backend.packed

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32; a text without any token gives the zero vector."""
        return embed_filled(batch, self._hidden_size, self._embed)

    def _embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        texts = [self._torch.from_numpy(np.ascontiguousarray(ids)) for ids in batch]
        with self._torch.inference_mode():
            return cast("NDArray[np.float32]", self._backend(texts).cpu().numpy())

    def _settle(self, asked: str | None) -> str:
        """Load the model on the device asked for, or else on the best one that it runs on."""
        torch = self._torch
        there = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
        if asked is not None:
            if asked.partition(":")[0] in ("cuda", "mps") and asked.partition(":")[0] not in there:
                raise DeviceError(f"device={asked!r} is not available here; use {', '.join([*there, 'cpu'])}.")
            try:
                self._backend = self._load(torch.device(asked))
            except RuntimeError as error:  # of torch.device: a word that is no device
                raise DeviceError(f"device={asked!r} cannot be used ({str(error).splitlines()[0]}).") from None
            return asked
        for name in there:
            try:
                self._backend = self._load(torch.device(name))
                self.embed([np.zeros(3, dtype=np.int64)])
            except (NotImplementedError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                logger.warning("The model does not run on %s (%s); it runs on the CPU instead.", name, reason)
            else:
                return name
        self._backend = self._load(torch.device("cpu"))
        return "cpu"


class Backend(Protocol):
    """A loaded model."""

    packed: bool

    def __call__(self, texts: list[Tensor]) -> Tensor:
        """Pooled vectors, (n, D), float32, of token ids on the CPU, at least one in each text."""
        ...


def load_backend(
    folder: Path, profile: Profile, device: torch.device, *, dtype: torch.dtype, compiled: bool
) -> Backend:
    """The leanest way to run a folder's model; errors as of `TorchRuntime`."""
    from drama_models.runtimes.packed_llama import PackedLlama, is_llama_shaped

    config = read_json(folder / "config.json")
    if is_llama_shaped(config):
        settings: dict[str, Any] = {"device": device, "dtype": dtype, "compile_layers": compiled}
        return LeanBackend(PackedLlama(folder, config, causal=not profile.bidirectional, **settings), profile.pooling)
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"a {config.get('model_type')} with runtime='torch'", "torch") from None
    from drama_models.runtimes.stock_backend import StockBackend

    return StockBackend(folder, profile, config, device=device, dtype=dtype, compiled=compiled)


class LeanBackend:
    """Our own forward pass."""

    packed: bool = True

    def __init__(self, model: PackedLlama, pooling: str) -> None:
        self.model, self.pooling = model, pooling

    def __call__(self, texts: list[Tensor]) -> Tensor:
        """Pooled vectors, (n, D), float32."""
        from drama_models.packing import pool_packed

        states, starts = self.model.states(texts)
        return pool_packed(states, starts, self.pooling)
