"""Reranking with a layer-wise model: pairs of texts in, scores out, in batches of similar length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from drama_models.batching import budget_batches
from drama_models.errors import ModelFolderError
from drama_models.model_folder import read_json
from drama_models.tokenisation import load_tokenizer
from training.reranker.inputs import ANSWERS, PairInput, pair_inputs
from training.reranker.layerwise_model import LayerwiseReranker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

BATCH_TOKENS = 4096  # padded tokens of a batch


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How much of the model is run. The published light setting is layer 25, with passages halved below layer 8."""

    layer: int | None = None
    """Layer to score after, counted from 1; the last by default."""
    compress_layers: tuple[int, ...] = ()
    """Layers, counted from 0, below which passages are compressed."""
    compress_ratio: int = 1
    """States of a passage that become one: 1, 2, 4 or 8 in training."""


class Reranker:
    """Scores pairs of query and passage.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: without EOS; must not truncate.
        bos: its token for the beginning of a text.
    """

    def __init__(self, model: LayerwiseReranker, tokenizer: Tokenizer, bos: str) -> None:
        self.model, self._tokenizer, self._bos = model, tokenizer, bos

    @classmethod
    def from_folder(cls, folder: Path, *, device: str | None = None, dtype: torch.dtype = torch.float32) -> Reranker:
        """Load a folder laid out like BAAI/bge-reranker-v2.5-gemma2-lightweight.

        Raises:
            ModelFolderError: a missing or damaged file, or weights that do not fit the configuration.
        """
        named = read_json(folder / "tokenizer_config.json").get("bos_token")
        bos = named.get("content") if isinstance(named, dict) else named
        if not isinstance(bos, str):
            raise ModelFolderError(f"{folder / 'tokenizer_config.json'} names no bos_token; fetch the folder again.")
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = LayerwiseReranker.from_folder(folder, dtype).to(chosen)
        return cls(model, load_tokenizer(folder, set_ends=False), bos)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        prompt: str = ANSWERS,
        depth: Depth | None = None,
        max_length: int = 1024,
        as_probability: bool = False,
    ) -> NDArray[np.float32]:
        """Relevance of each passage to its query.

        Args:
            pairs: query and passage of each.
            prompt: the question to the model; scores depend on its wording.
            depth: how much of the model is run; all of it by default.
            max_length: tokens of query and passage.
            as_probability: pass scores through a sigmoid.

        Returns:
            (number of pairs,), float32, in input order; higher is more relevant.

        Raises:
            ValueError: the layer has no head.
        """
        rows = pair_inputs(pairs, self._tokenizer, bos=self._bos, prompt=prompt, max_length=max_length)
        scores = np.empty(len(rows), dtype=np.float32)
        for batch in budget_batches([len(row.ids) for row in rows], BATCH_TOKENS):
            with torch.inference_mode():
                found = self._batch_scores([rows[position] for position in batch], depth or Depth())
                scores[batch] = (found.sigmoid() if as_probability else found).cpu().numpy()
        return scores

    def _batch_scores(self, rows: list[PairInput], depth: Depth) -> Tensor:
        given = (tensor.to(self.model.device) for tensor in padded(rows))
        (scores,) = self.model(
            *given,
            cutoff_layers=None if depth.layer is None else [depth.layer],
            compress_layers=depth.compress_layers,
            compress_ratio=depth.compress_ratio,
        ).values()
        return scores


def padded(rows: Sequence[PairInput]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs as rectangles, padded on the right to a multiple of 8.

    Returns:
        Ids and mask, (B, T) each, lengths before and behind the passages, (B,) each; all int64.
    """
    longest = max(row.padded_length for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
    mask = torch.arange(longest) < torch.tensor([len(row.ids) for row in rows])[:, None]
    lengths = torch.tensor([[row.query_length, row.prompt_length] for row in rows])
    return ids, mask.long(), lengths[:, 0], lengths[:, 1]
