"""int8 that can be trusted: calibrated and measured on texts before it is used, and left out where it fails.

From a folder's safetensors: the largest inputs of every linear layer on the sample texts, outlier channels moved into
the weights (`outliers`), weights in eight bits with a scale for each row, and the cosine between the embeddings before
and after on the same texts. Below the wanted cosine the layers that lose most go back to float32 one after another; if
half of them do not suffice, the conversion is refused.

Weights are signed bytes where ONNX Runtime multiplies those exactly: on x86 with VNNI, which is more than twice as fast
with them, and on others. Elsewhere they are unsigned, 128 standing for 0, since x86 without VNNI adds two products with
signed bytes in 16 bits, which overflow now and then and double the error of a layer. `byte_products` tries which it is.

A conversion takes seconds, so its result is kept in the user's cache and memory-mapped from then on. It is found by
the files it was made from (path, size, time of change), the sample texts, the version of ONNX Runtime, and the
processor, since the measured cosine holds only where it was measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from drama_models.errors import ModelFolderError, PrecisionError
from drama_models.folders import atomic_file, cache_folder
from drama_models.hardware import processor_name
from drama_models.model_folder import weight_files
from drama_models.runtimes.byte_products import quantised_rows, signed_bytes_are_exact
from drama_models.runtimes.llama_graph import INT8
from drama_models.runtimes.llama_runtime import LlamaEncoder, LlamaOnnxRuntime, read_llama
from drama_models.runtimes.mapped_weights import MappedWeights
from drama_models.runtimes.onnx_session import chosen_threads
from drama_models.runtimes.outliers import smoothed
from drama_models.runtimes.packed_graph import WEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.profile import Profile
    from drama_models.runtimes.llama_shape import LlamaShape

    Tensors = dict[str, NDArray[Any]]
    Tokenise = Callable[[Sequence[str]], list[NDArray[np.int64]]]

logger = logging.getLogger(__name__)

MIN_COSINE = 0.995
FORMAT = 3  # of the cached file; raise it when the conversion changes
SAMPLE_TOKENS = 256  # of a sample text that are read; longer ones would only make the conversion slower


@dataclass(frozen=True)
class Int8Report:
    """How a conversion went."""

    smallest_cosine: float
    """Between embeddings before and after, over the sample texts."""
    mean_cosine: float
    texts: int
    kept: tuple[int, ...]
    """Layers left in float32."""

    def __str__(self) -> str:
        kept = f", layers {', '.join(map(str, self.kept))} in fp32" if self.kept else ""
        return f"int8 (smallest cosine {self.smallest_cosine:.4f} on {self.texts} texts{kept})"


def open_int8(
    folder: Path,
    profile: Profile,
    tokenise: Tokenise,
    texts: Sequence[str],
    *,
    threads: int | None = None,
    min_cosine: float = MIN_COSINE,
) -> LlamaOnnxRuntime:
    """A folder's model in int8, from the cache or converted now.

    Args:
        folder: model folder with a Llama's config.json and safetensors.
        profile: attention direction and pooling.
        tokenise: token ids of documents.
        texts: calibrated and measured on; the more they are like what will be encoded, the better.
        threads: of one call; see `chosen_threads`.
        min_cosine: the smallest that is accepted for any of the texts.

    Raises:
        ModelFolderError: weights missing, damaged or of the wrong shape, or a Llama that the graph does not know.
        PrecisionError: int8 stays below `min_cosine` with half of the layers left in float32.
    """
    count = chosen_threads(threads)
    shape, weights = read_llama(folder)
    conversion = Conversion(shape, weights, profile, threads=count)
    tensors: Tensors | MappedWeights | None
    path = cache_folder() / f"{_key(folder, profile, texts, min_cosine)}.safetensors"
    tensors, report = _read(path) or (None, None)
    if tensors is None or report is None:
        logger.info("converting %s to int8, kept in %s from now on", folder, path)
        samples = [ids[:SAMPLE_TOKENS] for ids in tokenise(texts) if len(ids)]
        tensors, report = conversion.convert(samples, min_cosine)
        _write(path, tensors, report)
    return LlamaOnnxRuntime(conversion.encoder(tensors), profile.pooling, "int8", count, str(report))


class Conversion:
    """From the float32 weights of a model to int8 tensors that are good enough.

    Args:
        shape: of the model.
        weights: of the model.
        profile: attention direction and pooling.
        threads: of one call.
        signed: store weights as signed bytes; by default where this machine multiplies them exactly.
    """

    def __init__(
        self,
        shape: LlamaShape,
        weights: MappedWeights,
        profile: Profile,
        *,
        threads: int,
        signed: bool | None = None,
    ) -> None:
        self.shape, self.weights, self.profile, self.threads = shape, weights, profile, threads
        self._signed = signed

    def encoder(self, tensors: Tensors | MappedWeights) -> LlamaEncoder:
        """An encoder over converted tensors; what is int8 among them runs in int8."""
        return self._encoder(tensors, [name.removesuffix(INT8) for name in tensors if name.endswith(INT8)])

    def convert(self, samples: Sequence[NDArray[np.int64]], min_cosine: float) -> tuple[Tensors, Int8Report]:
        """Tensors by the names that the graph asks for, and how good they are.

        Args:
            samples: token ids of the sample texts.
            min_cosine: the smallest that is accepted for any of them.

        Raises:
            PrecisionError: not reached with half of the layers left in float32.
        """
        exact, expected = self.evened_out(samples)
        by_loss: list[int] = []
        for number in range(self.shape.layers // 2 + 1):
            if number == 1:  # only now, since it takes a session for every layer
                by_loss = self._by_loss(exact, samples, expected)
            kept = by_loss[:number]
            tensors = self._quantised(exact, set(range(self.shape.layers)) - set(kept))
            cosines = self._cosines(tensors, samples, expected)
            if cosines.min() >= min_cosine:
                report = Int8Report(float(cosines.min()), float(cosines.mean()), len(samples), tuple(sorted(kept)))
                return tensors, report
        raise PrecisionError(
            f"int8 reaches a smallest cosine of {cosines.min():.4f} on {len(samples)} sample texts, with {len(kept)} "
            f"of {self.shape.layers} layers left in fp32; {min_cosine} is asked for. Use precision='fp32', or pass "
            "sample_texts that are like what you encode."
        )

    def evened_out(self, samples: Sequence[NDArray[np.int64]]) -> tuple[Tensors, NDArray[np.float32]]:
        """The model's own tensors with outlier channels moved into weights, and its embeddings of the samples."""
        encoder = self._encoder(self.weights, watched=True)
        expected = np.concatenate([encoder.embed([ids], self.profile.pooling) for ids in samples])
        peaks = [encoder.peaks([ids]) for ids in samples]
        largest = {name: np.max([peak[name] for peak in peaks], axis=0) for name in peaks[0]}
        tensors: Tensors = {"norm.weight": np.array(self.weights["norm.weight"])}
        for layer in range(self.shape.layers):
            tensors |= smoothed(self.weights, self.shape, largest, layer)
        return tensors, expected

    def _by_loss(
        self, exact: Tensors, samples: Sequence[NDArray[np.int64]], expected: NDArray[np.float32]
    ) -> list[int]:
        """Layers, the one that loses most when it alone is in int8 first."""
        smallest = [
            float(self._cosines(self._quantised(exact, {layer}), samples, expected).min())
            for layer in range(self.shape.layers)
        ]
        return sorted(range(self.shape.layers), key=lambda layer: smallest[layer])

    def _quantised(self, exact: Tensors, layers: set[int]) -> Tensors:
        tensors = dict(exact)
        signed = signed_bytes_are_exact() if self._signed is None else self._signed
        for name in self.shape.linear_sizes():
            if int(name.split(".")[1]) in layers:
                tensors |= quantised_rows(name, tensors.pop(name + WEIGHT), signed=signed)
        return tensors

    def _cosines(
        self, tensors: Tensors, samples: Sequence[NDArray[np.int64]], expected: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        encoder = self.encoder(tensors)
        found = np.concatenate([encoder.embed([ids], self.profile.pooling) for ids in samples])
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosines: NDArray[np.float32] = (found * expected).sum(axis=1) / lengths
        return cosines

    def _encoder(
        self, tensors: Tensors | MappedWeights, quantised: Sequence[str] = (), *, watched: bool = False
    ) -> LlamaEncoder:
        return LlamaEncoder(
            self.shape,
            self.weights,
            tensors,
            bidirectional=self.profile.bidirectional,
            threads=self.threads,
            quantised=quantised,
            watched=watched,
        )


def _key(folder: Path, profile: Profile, texts: Sequence[str], min_cosine: float) -> str:
    """What a conversion depends on, as one name."""
    paths = [path.resolve() for path in (folder / "config.json", folder / "tokenizer.json", *weight_files(folder))]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    here = [FORMAT, metadata.version("onnxruntime"), processor_name()]
    wanted = [profile.pooling, profile.bidirectional, min_cosine, list(texts)]
    return hashlib.sha256(json.dumps([files, here, wanted]).encode()).hexdigest()[:32]


def _read(path: Path) -> tuple[MappedWeights, Int8Report] | None:
    """A finished conversion; None where there is none, or one that cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            recorded = json.loads((file.metadata() or {})["report"])
        return MappedWeights([path]), Int8Report(**recorded | {"kept": tuple(recorded["kept"])})
    except (OSError, SafetensorError, ModelFolderError, KeyError, ValueError, TypeError):
        return None


def _write(path: Path, tensors: Tensors, report: Int8Report) -> None:
    """Keep a conversion; where that is not possible, it is made again next time."""
    try:
        with atomic_file(path) as partial:
            save_file(tensors, partial, metadata={"report": json.dumps(asdict(report))})
    except (OSError, SafetensorError) as error:
        logger.warning("the int8 weights could not be kept in %s (%s); they are made again next time", path, error)
