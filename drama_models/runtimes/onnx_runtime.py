"""ONNX Runtime over a folder's own `onnx/model.onnx`, whatever architecture it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from drama_models.errors import ModelFolderError
from drama_models.model_folder import ONNX_GRAPH
from drama_models.pooling import pool
from drama_models.runtimes import CPU_BATCH_TOKENS
from drama_models.runtimes.onnx_session import chosen_threads, file_session
from drama_models.runtimes.padding import embed_filled, pad

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.profile import Profile

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "last_hidden_state"
KINDS = "token_type_ids"  # of a BERT as optimum exports it: every token of a single text is of kind 0


class OnnxRuntime:
    """A session over an exported graph; calls from many threads are safe.

    Args:
        folder: model folder with `onnx/model.onnx`.
        profile: for the pooling.
        threads: of one call; by default the environment's DRAMA_THREADS, else every core this process may use.

    Raises:
        ModelFolderError: no graph, a damaged graph, or one with other inputs or outputs.
    """

    batch_tokens, packed = CPU_BATCH_TOKENS, False
    name, precision, description = "onnx", "fp32", f"ONNX Runtime on {ONNX_GRAPH}"

    def __init__(self, folder: Path, profile: Profile, threads: int | None = None) -> None:
        path = folder / ONNX_GRAPH
        if not path.is_file():
            raise ModelFolderError(
                f"{path} is missing; export it with `python -m export release`, or use runtime='torch'."
            )
        self._session = file_session(path, chosen_threads(threads))
        inputs = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        if inputs - {KINDS} != set(INPUTS) or OUTPUT not in outputs:
            raise ModelFolderError(
                f"{path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}; "
                f"expected {', '.join(INPUTS)}, perhaps {KINDS}, and {OUTPUT}."
            )
        self._has_kinds = KINDS in inputs
        self._pooling, self._hidden_size = profile.pooling, profile.hidden_size

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32; zeros for a text without tokens."""
        return embed_filled(batch, self._hidden_size, self._embed)

    def _embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        ids, mask = pad(batch)
        inputs = dict(zip(INPUTS, (ids, mask), strict=True))
        (hidden,) = self._session.run([OUTPUT], inputs | ({KINDS: np.zeros_like(ids)} if self._has_kinds else {}))
        return pool(np.asarray(hidden, dtype=np.float32), mask, self._pooling).astype(np.float32)
