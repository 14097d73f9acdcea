"""ONNX Runtime straight from a folder's safetensors: no export, no torch, no second file.

The graph is built from config.json in milliseconds (`llama_graph`), its weights are the memory-mapped file, and the
rows of the token embedding are read from there too.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.model_folder import check_llama_weights, read_json, weight_files
from drama_models.pooling import pool_rows
from drama_models.runtimes import CPU_BATCH_TOKENS
from drama_models.runtimes.graph_names import BIAS, COSINES, EMBEDDED, INT8, OUTPUT, SINES, edges_of
from drama_models.runtimes.llama_shape import LlamaShape
from drama_models.runtimes.mapped_weights import MappedWeights
from drama_models.runtimes.onnx_session import chosen_threads, memory_session
from drama_models.runtimes.padding import embed_filled

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.pooling import Pooling
    from drama_models.profile import Profile

EMBEDDING = "embed_tokens.weight"


class LlamaEncoder:
    """A session over tokens of several texts in a row; what both precisions and the calibration share.

    Args:
        shape: of the model.
        embedding: holds the token embedding.
        session: of ONNX Runtime over a `LlamaGraph`.
        peaks: names of the outputs that `peaks` reads, if the graph has them.
        held: what the session reads in place, and so must live as long as it.
    """

    def __init__(
        self,
        shape: LlamaShape,
        embedding: MappedWeights,
        session: Any,
        peaks: Sequence[str] = (),
        held: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.shape, self.embedding = shape, embedding
        self._session, self._peaks, self._held = session, peaks, held

    @classmethod
    def built(
        cls,
        shape: LlamaShape,
        embedding: MappedWeights,
        weights: Mapping[str, NDArray[Any]],
        *,
        bidirectional: bool,
        threads: int,
        quantised: Collection[str] = (),
        watched: bool = False,
        keep_in: Path | None = None,
    ) -> LlamaEncoder:
        """An encoder whose graph is built now.

        Args:
            shape: of the model.
            embedding: holds the token embedding.
            weights: holds everything else, under the names that the graph asks for.
            bidirectional: whether tokens see later ones.
            threads: of one call.
            quantised: linear layers to run in int8.
            watched: also give each linear layer's largest inputs; see `peaks`.
            keep_in: folder to keep the packed session in; see `onnx_session`.
        """
        from drama_models.runtimes.llama_graph import LlamaGraph

        biases = {name for name in shape.linear_sizes() if name + BIAS in weights}
        signed = any(weights[name + INT8].dtype == np.int8 for name in quantised)
        settings: dict[str, Any] = {"bidirectional": bidirectional, "quantised": quantised, "signed": signed}
        graph = LlamaGraph(shape, biases, watched=watched, **settings)
        model = graph.model()
        held = {name: weights[name] for name in graph.external}
        with weights.passing_through() if isinstance(weights, MappedWeights) else nullcontext():
            session = memory_session(model, held, threads, keep_in)  # packs the large ones in its own way
        return cls(shape, embedding, session, graph.peaks, held)

    def states(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Last hidden states of all tokens, text after text: (N, D), float32."""
        states: NDArray[np.float32] = self._session.run([OUTPUT], self._inputs(texts))[0][0]
        return states

    def embed(self, texts: Sequence[NDArray[np.int64]], pooling: Pooling) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, D), float32; zeros for a text without tokens."""

        def pooled(filled: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
            return pool_rows(self.states(filled), [len(text) for text in filled], pooling)

        return embed_filled(texts, self.shape.hidden_size, pooled)

    def peaks(self, texts: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        """Largest magnitude of every channel that enters a linear layer, by the first layer on that input, (in,)."""
        return dict(zip(self._peaks, self._session.run(self._peaks, self._inputs(texts)), strict=True))

    def _inputs(self, texts: Sequence[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        lengths = np.array([len(text) for text in texts])
        positions = np.concatenate([np.arange(length) for length in lengths])
        cosines, sines = self.shape.rotation(positions)
        return {
            EMBEDDED: self.embedding.rows(EMBEDDING, np.concatenate(texts))[None],
            COSINES: cosines,
            SINES: sines,
            **edges_of(lengths),
        }


class LlamaOnnxRuntime:
    """A Llama behind the interface of all runtimes; calls from many threads are safe.

    Args:
        encoder: computes the hidden states.
        pooling: of the model's profile.
        precision: that it computes in.
        threads: for the description.
        report: what else is to be said of the precision.
    """

    name = "onnx"
    batch_tokens, packed = CPU_BATCH_TOKENS, True

    def __init__(self, encoder: LlamaEncoder, pooling: Pooling, precision: str, threads: int, report: str = "") -> None:
        self._encoder, self._pooling, self.precision = encoder, pooling, precision
        self.description = f"ONNX Runtime from safetensors, {report or precision}, threads: {threads}"

    @classmethod
    def from_folder(cls, folder: Path, profile: Profile, threads: int | None = None) -> LlamaOnnxRuntime:
        """A folder's model in float32.

        Args:
            folder: model folder with a Llama's config.json and safetensors.
            profile: attention direction and pooling.
            threads: of one call; by default the environment's DRAMA_THREADS, else every core this process may use.

        Raises:
            ModelFolderError: weights missing, damaged or of the wrong shape, or a Llama that the graph does not know.
        """
        count = chosen_threads(threads)
        shape, weights = read_llama(folder)
        encoder = LlamaEncoder.built(shape, weights, weights, bidirectional=profile.bidirectional, threads=count)
        return cls(encoder, profile.pooling, "fp32", count)

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32."""
        return self._encoder.embed(batch, self._pooling)


def read_llama(folder: Path) -> tuple[LlamaShape, MappedWeights]:
    """Shape and checked weights of a model folder.

    Raises:
        ModelFolderError: weights missing, damaged or of the wrong shape, or a Llama that the graph does not know.
    """
    config = read_json(folder / "config.json")
    check_llama_weights(folder, config)
    return LlamaShape.from_config(config), MappedWeights(weight_files(folder))
