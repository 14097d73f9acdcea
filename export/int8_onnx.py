"""A release's graph in eight bits: converted, measured on texts as it lies on disk, refused where it loses too much.

Outlier channels are moved into the weights and layers that lose too much stay in float32, as `drama_models` does for
its own runtime; here the result is a graph of standard operators that every client runs. The token embedding, the
larger half of a small multilingual model, has eight bits and a scale for each token, or float32 if that loses too much.

transformers.js and optimum ask for the same graph under two names, so there are two files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import PrecisionError
from drama_models.model_folder import read_json
from drama_models.pooling import cosines, pool
from drama_models.profile import Profile
from drama_models.runtimes.byte_products import quantised_rows
from drama_models.runtimes.graph_names import INT8
from drama_models.runtimes.int8 import SAMPLE_TOKENS, Int8Report
from drama_models.runtimes.int8_conversion import Conversion
from drama_models.runtimes.llama_runtime import LlamaOnnxRuntime, read_llama
from drama_models.runtimes.onnx_session import chosen_threads, file_session
from drama_models.runtimes.padding import pad
from drama_models.sample_texts import SAMPLE_TEXTS
from drama_models.tokenisation import TextTokenizer
from export.llama_graph import EMBEDDING, OUTPUT, build_graph
from export.to_onnx import save_graph

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

INT8_GRAPHS = ("onnx/model_int8.onnx", "onnx/model_quantized.onnx")
MIN_COSINE = 0.997  # on the sample texts, so that texts that were not measured stay above 0.995


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """How close a graph in eight bits is to the float32 model."""

    smallest_cosine: float
    """Between embeddings of the float32 model and of the graph on disk, over the sample texts."""
    mean_cosine: float
    texts: int
    layers_in_fp32: tuple[int, ...]
    """Layers that lost too much in eight bits."""
    embedding: str
    """Number format of the token embedding."""


def write_int8_onnx(
    folder: Path, texts: Sequence[str] = SAMPLE_TEXTS, *, min_cosine: float = MIN_COSINE
) -> GraphReport:
    """Add the graphs in eight bits to a release folder.

    Args:
        folder: with `config.json`, tokenizer and safetensors.
        texts: documents that are calibrated and measured on; the more they are like what will be encoded, the better.
        min_cosine: the smallest that is accepted for any of them.

    Raises:
        ModelFolderError: unreadable weights, or a model that is not a Llama this exporter knows.
        PrecisionError: not reached with half of the layers and the embedding in float32.
    """
    profile, (shape, weights) = Profile.from_folder(folder), read_llama(folder)
    tokenizer = TextTokenizer(folder, profile, min(profile.max_length, SAMPLE_TOKENS))
    samples = [ids for ids in tokenizer.encode(texts, profile.document_prompt)[0] if len(ids)]
    conversion = Conversion(shape, weights, profile, threads=chosen_threads(), signed=False)  # for any processor
    tensors, converted = conversion.convert(samples, min_cosine)
    expected = LlamaOnnxRuntime.from_folder(folder, profile).embed(samples)
    table = np.asarray(weights[f"{EMBEDDING}.weight"])
    config, paths = read_json(folder / "config.json"), [folder / name for name in INT8_GRAPHS]
    for embedding, stored in (("int8", _embedding_rows(table)), ("fp32", {f"{EMBEDDING}.weight": table})):
        for path in paths:
            save_graph(build_graph(config, tensors | stored, bidirectional=profile.bidirectional), path)
        reached = cosines(_embed(paths[0], samples, profile), expected)
        if reached.min() >= min_cosine:
            return _report(reached, converted, embedding)
    raise PrecisionError(
        f"The graph in int8 reaches a smallest cosine of {reached.min():.4f} on {len(samples)} sample texts, "
        f"{min_cosine} is asked for; leave int8 out of --onnx."
    )


def _report(reached: NDArray[np.floating], converted: Int8Report, embedding: str) -> GraphReport:
    return GraphReport(
        smallest_cosine=float(reached.min()),
        mean_cosine=float(reached.mean()),
        texts=len(reached),
        layers_in_fp32=converted.kept,
        embedding=embedding,
    )


def _embedding_rows(table: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The token embedding with a scale for each token, (V, D), as it is gathered from and not as it is multiplied."""
    rows = quantised_rows(EMBEDDING, table, signed=False)
    return rows | {EMBEDDING + INT8: np.ascontiguousarray(rows[EMBEDDING + INT8].T)}


def _embed(path: Path, samples: Sequence[NDArray[np.int64]], profile: Profile) -> NDArray[np.float32]:
    """Pooled vectors of the graph on disk, (number of samples, D), text by text."""
    session = file_session(path, chosen_threads())
    rows = []
    for sample in samples:
        ids, mask = pad([sample])
        (states,) = session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
        rows.append(pool(states, mask, profile.pooling))
    return np.concatenate(rows)
