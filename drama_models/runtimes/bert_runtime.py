"""ONNX Runtime straight from the safetensors of a BERT: no export, no torch, no second file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from drama_models.model_folder import read_json, weight_files
from drama_models.pooling import pool_rows
from drama_models.runtimes import CPU_BATCH_TOKENS
from drama_models.runtimes.bert_graph import BertGraph
from drama_models.runtimes.bert_shape import KINDS, POSITIONS, WORDS, BertShape, check_bert_weights
from drama_models.runtimes.graph_names import EMBEDDED, OUTPUT, edges_of
from drama_models.runtimes.mapped_weights import MappedWeights
from drama_models.runtimes.onnx_session import chosen_threads, memory_session
from drama_models.runtimes.padding import embed_filled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.profile import Profile


class BertOnnxRuntime:
    """A BERT behind the interface of all runtimes; calls from many threads are safe.

    Args:
        folder: model folder with a BERT's config.json and safetensors.
        profile: attention direction and pooling.
        threads: of one call; by default the environment's DRAMA_THREADS, else every core this process may use.

    Raises:
        ModelFolderError: weights missing, damaged or of the wrong shape, or a BERT that the graph does not know.
    """

    name, precision = "onnx", "fp32"
    batch_tokens, packed = CPU_BATCH_TOKENS, True

    def __init__(self, folder: Path, profile: Profile, threads: int | None = None) -> None:
        count = chosen_threads(threads)
        config = read_json(folder / "config.json")
        stored = check_bert_weights(folder, config)
        shape = BertShape.from_config(config)
        self._mapped = MappedWeights(weight_files(folder))
        graph = BertGraph(shape, bidirectional=profile.bidirectional)
        model = graph.model()
        self._weights = {name: self._mapped[stored[name]] for name in graph.external}  # read where they are
        with self._mapped.passing_through():
            self._session = memory_session(model, self._weights, count)  # packs the large ones in its own way
        self._words, self._size, self._pooling = stored[WORDS], shape.hidden_size, profile.pooling
        self._places = self._mapped[stored[POSITIONS]] + self._mapped[stored[KINDS]][0]  # (longest text, D)
        self.description = f"ONNX Runtime from safetensors, fp32, threads: {count}"

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32; zeros for a text without tokens."""
        return embed_filled(batch, self._size, self._embed)

    def _embed(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        lengths = np.array([len(text) for text in texts])
        positions = np.concatenate([np.arange(length) for length in lengths])
        embedded = self._mapped.rows(self._words, np.concatenate(texts)) + self._places[positions]
        (states,) = self._session.run([OUTPUT], {EMBEDDED: embedded[None]} | edges_of(lengths))
        return pool_rows(states[0], lengths.tolist(), self._pooling)
