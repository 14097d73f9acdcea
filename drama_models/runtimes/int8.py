"""int8 that can be trusted: calibrated and measured on texts before it is used, and kept as it was packed.

A conversion (`int8_conversion`) takes seconds, and packing its weights most of the time of a start, so the packed
session is kept in the user's cache: a folder with its graph, its weights and a report. The next process maps the
weights, packs nothing, and needs no package that builds graphs. A conversion is found by the files it was made from
(path, size, time of change), the sample texts, the version of ONNX Runtime, and the processor, since how weights are
packed and what cosine was measured hold only where they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from drama_models.errors import PrecisionError
from drama_models.folders import atomic_folder, cache_folder, sha256_of_file
from drama_models.hardware import processor_identity
from drama_models.integrity import known_sha256
from drama_models.model_folder import weight_files
from drama_models.provenance import FILES
from drama_models.runtimes.llama_runtime import LlamaEncoder, LlamaOnnxRuntime, read_llama
from drama_models.runtimes.onnx_session import GRAPH_FILE, WEIGHTS_FILE, chosen_threads, kept_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from drama_models.profile import Profile
    from drama_models.runtimes.llama_shape import LlamaShape
    from drama_models.runtimes.mapped_weights import MappedWeights

    Tokenise = Callable[[Sequence[str]], list[NDArray[np.int64]]]

logger = logging.getLogger(__name__)

MIN_COSINE = 0.995
FORMAT = 4  # of what is kept; raise it when the conversion changes
REPORT_FILE = "report.json"
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
        PrecisionError: int8 stays below `min_cosine` with half of the layers left in float32, or no text has a token.
    """
    count = chosen_threads(threads)
    shape, weights = read_llama(folder)
    kept = cache_folder() / _key(folder, profile, texts, min_cosine)
    opened = _open(kept, count)
    if opened is None:
        logger.info("converting %s to int8, kept in %s from now on", folder, kept)
        samples = [ids[:SAMPLE_TOKENS] for ids in tokenise(texts) if len(ids)]
        if not samples:
            raise PrecisionError("None of the sample texts has a token, so int8 cannot be measured; pass others.")
        encoder, report = _convert(shape, weights, profile, samples, min_cosine, count, kept)
    else:
        session, report = opened
        encoder = LlamaEncoder(shape, weights, session)
    return LlamaOnnxRuntime(encoder, profile.pooling, "int8", count, str(report))


def _convert(
    shape: LlamaShape,
    weights: MappedWeights,
    profile: Profile,
    samples: Sequence[NDArray[np.int64]],
    min_cosine: float,
    threads: int,
    kept: Path,
) -> tuple[LlamaEncoder, Int8Report]:
    """Convert, and keep the result; where that is not possible, it is made again next time."""
    from drama_models.runtimes.int8_conversion import Conversion

    conversion = Conversion(shape, weights, profile, threads=threads)
    tensors, report = conversion.convert(samples, min_cosine)
    try:
        with atomic_folder(kept, scratch=True) as partial:
            conversion.encoder(tensors, keep_in=partial)
            hashes = {name: sha256_of_file(partial / name) for name in (GRAPH_FILE, WEIGHTS_FILE)}
            (partial / REPORT_FILE).write_text(json.dumps({FILES: hashes, **asdict(report)}), encoding="utf-8")
        opened = _open(kept, threads)
    except Exception as error:  # of the disk, or ONNX Runtime's own, which share no public base class
        logger.warning("the int8 weights could not be kept in %s (%s); they are made again next time", kept, error)
        opened = None
    encoder = LlamaEncoder(shape, weights, opened[0]) if opened else conversion.encoder(tensors)
    return encoder, report


def _open(kept: Path, threads: int) -> tuple[Any, Int8Report] | None:
    """A session that was kept, and its report; None where there is none, or one that is not whole."""
    try:
        recorded = json.loads((kept / REPORT_FILE).read_text(encoding="utf-8"))
        hashes = recorded.pop(FILES)
        if any(known_sha256(kept / name) != hashes[name] for name in (GRAPH_FILE, WEIGHTS_FILE)):
            return None
        return kept_session(kept, threads), Int8Report(**recorded | {"kept": tuple(recorded["kept"])})
    except Exception:  # of the disk, of a damaged report, or ONNX Runtime's own: it is converted again
        return None


def _key(folder: Path, profile: Profile, texts: Sequence[str], min_cosine: float) -> str:
    """What a conversion depends on, as one name."""
    import onnxruntime

    paths = [path.resolve() for path in (folder / "config.json", folder / "tokenizer.json", *weight_files(folder))]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    here = [FORMAT, onnxruntime.__version__, processor_identity()]
    wanted = [profile.pooling, profile.bidirectional, min_cosine, list(texts)]
    return hashlib.sha256(json.dumps([files, here, wanted]).encode()).hexdigest()[:32]
