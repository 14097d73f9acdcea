"""The encoder: tokenizer, profile and runtime as one object that turns texts into unit vectors."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from drama_models.batching import budget_batches, windows
from drama_models.errors import DimensionError, MissingExtraError, TextsCutWarning
from drama_models.model_folder import ONNX_GRAPH, find_model_folder, fingerprint
from drama_models.pooling import finish
from drama_models.profile import Profile
from drama_models.tokenisation import TextTokenizer, checked_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.runtimes import Runtime

logger = logging.getLogger(__name__)

RuntimeName = Literal["auto", "torch", "onnx"]
WINDOW_TEXTS = 4096  # sorted by length together; also what a streaming call holds in memory
BATCH_TOKENS = 1024  # padded tokens in a batch: the sweet spot of two CPU cores, larger is no faster there
GPU_BATCH_TOKENS = 16_384


class Encoder:
    """Encodes queries and documents with one model folder. Build it with `Encoder.from_pretrained`."""

    def __init__(
        self, folder: Path, profile: Profile, tokenizer: TextTokenizer, runtime: Runtime, dim: int | None = None
    ) -> None:
        self.folder, self.profile, self.runtime = folder, profile, runtime
        self._tokenizer = tokenizer
        self.dim = checked_dim(dim, profile)
        self.batch_tokens = GPU_BATCH_TOKENS if getattr(runtime, "device", "cpu") != "cpu" else BATCH_TOKENS

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        runtime: RuntimeName = "auto",
        dim: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        revision: str | None = None,
    ) -> Encoder:
        """Load an encoder from a folder or from the hub.

        Args:
            model: folder of a release, of a trained retriever, or laid out like `facebook/drama-base`; or a hub name.
            runtime: "torch", "onnx" (needs `onnx/model.onnx` in the folder), or "auto": ONNX where a graph is there
                and no device or dtype is asked for, else torch.
            dim: coordinates to keep, cut before normalising; all by default.
            max_length: tokens kept of each text, its ends included; the model's own limit by default.
            device: for torch, such as "cuda"; a GPU if there is one by default.
            dtype: number format of the torch weights.
            revision: branch, tag or commit on the hub.

        Raises:
            ModelFolderError: the folder is incomplete, damaged, or cannot be found.
            AttentionDirectionError: its attention direction cannot be honoured.
            DimensionError: `dim` is below 1 or above the hidden size.
            MissingExtraError: the runtime's packages are not installed.
        """
        folder = find_model_folder(model, revision)
        profile = Profile.from_folder(folder)
        checked_dim(dim, profile)
        tokenizer = TextTokenizer(folder, profile, max_length or profile.max_length)
        if runtime == "auto":
            plain = device is None and dtype == "float32"
            runtime = "onnx" if plain and (folder / ONNX_GRAPH).is_file() else "torch"
            if runtime == "torch" and find_spec("torch") is None:
                raise MissingExtraError(f"{folder} has no {ONNX_GRAPH}, so encoding with it", "torch")
            logger.info("runtime='auto' chose %r for %s", runtime, folder)
        computing: Runtime
        if runtime == "onnx":
            from drama_models.runtimes.onnx_runtime import OnnxRuntime

            computing = OnnxRuntime(folder, profile)
        else:
            from drama_models.runtimes.torch_runtime import TorchRuntime

            computing = TorchRuntime(folder, profile, device, dtype)
        return cls(folder, profile, tokenizer, computing, dim)

    def encode_queries(
        self, queries: str | Iterable[str], *, dim: int | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed queries, each behind the profile's query prompt.

        Args:
            queries: one text, a list, or any iterable.
            dim: coordinates to keep, overriding the encoder's.
            show_progress: a progress bar on the terminal.

        Returns:
            (number of queries, dim), float32, in input order, rows of length 1; a single text gives one row.

        Raises:
            TextError: something that is not a string; the message names its position.
            DimensionError: `dim` is below 1 or above the hidden size.
        """
        return self._encode(queries, self.profile.query_prompt, dim, show_progress=show_progress)

    def encode_documents(
        self, documents: str | Iterable[str], *, dim: int | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed documents, each behind the profile's document prompt; arguments and result as of `encode_queries`."""
        return self._encode(documents, self.profile.document_prompt, dim, show_progress=show_progress)

    def stream_documents(self, documents: Iterable[str], *, dim: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Embed documents window by window, in constant memory however many there are.

        Yields:
            (up to 4096, dim), float32, in input order.
        """
        size = self.dim if dim is None else checked_dim(dim, self.profile)
        return self._stream(documents, self.profile.document_prompt, size)

    def fingerprint(self) -> str:
        """SHA-256 of the model's configuration, tokenizer and weights; the same for every runtime of a folder."""
        return fingerprint(self.folder)

    def _encode(
        self, texts: str | Iterable[str], prompt: str, dim: int | None, *, show_progress: bool
    ) -> NDArray[np.float32]:
        size = self.dim if dim is None else checked_dim(dim, self.profile)
        given = [texts] if isinstance(texts, str) else texts
        total = len(given) if isinstance(given, list | tuple) else None
        pieces = []
        with tqdm(total=total, desc="encode", unit=" texts", disable=None if show_progress else True) as bar:
            for piece in self._stream(given, prompt, size):
                pieces.append(piece)
                bar.update(len(piece))
        return np.concatenate(pieces) if pieces else np.empty((0, size), dtype=np.float32)

    def _stream(self, texts: Iterable[str], prompt: str, dim: int) -> Iterator[NDArray[np.float32]]:
        checked = (checked_text(text, position) for position, text in enumerate(texts))
        cut = 0
        for window in windows(checked, WINDOW_TEXTS):
            ids, cut_here = self._tokenizer.encode(window, prompt)
            cut += cut_here
            vectors = np.empty((len(window), dim), dtype=np.float32)
            for batch in budget_batches([len(row) for row in ids], self.batch_tokens):
                pooled = self.runtime.embed([ids[position] for position in batch])
                vectors[batch] = finish(pooled, dim, normalise=self.profile.normalise)
            yield vectors
        if cut:
            warnings.warn(TextsCutWarning(cut), stacklevel=2)


def checked_dim(dim: int | None, profile: Profile) -> int:
    """A usable embedding size; None stands for the full one.

    Raises:
        DimensionError: below 1 or above the hidden size. A size that was not trained only warns.
    """
    if dim is None:
        return profile.hidden_size
    trained = ", ".join(map(str, profile.dims)) or f"{profile.hidden_size} (the folder names no smaller ones)"
    if not 1 <= dim <= profile.hidden_size:
        raise DimensionError(f"dim={dim} must be between 1 and {profile.hidden_size}; trained sizes: {trained}.")
    if profile.dims and dim not in profile.dims:
        warnings.warn(f"dim={dim} was not trained; quality may drop. Trained sizes: {trained}.", stacklevel=3)
    return dim
