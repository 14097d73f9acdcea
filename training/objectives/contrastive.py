"""InfoNCE: a query's positive against its hard negatives and the documents of every other query.

    L = -log( exp(s(q, d+) / t) / sum over the documents d of the batch of exp(s(q, d) / t) ),  mean over queries

with cosine s for DRAMA (arXiv 2502.18460, section 3.2) and bge-en-icl, raw dot product and t = 1 for DRAGON (arXiv
2302.07452). The labels say whether other queries' documents count. Scores of large batches are made for some queries at
a time, and made anew on the way back, so that memory grows with the documents and not with queries times documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from training.objectives.similarity import Similarity, check_similarity, check_temperature, comparable, products

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.false_negatives import FalseNegatives
    from training.objectives.labels import Labels

SCORES_AT_ONCE = 1 << 25  # 128 MiB in float32


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """InfoNCE of one positive for each query.

    Raises:
        ValueError: a temperature that is not positive, an unknown similarity.
    """

    temperature: float = 0.02
    """Divides the scores; 1 is usual for dot products."""
    similarity: Similarity = "cosine"
    """Cosine, or dot: the raw dot product."""
    false_negatives: FalseNegatives | None = None
    """Which negatives a teacher's scores take out of the sum; by default none."""

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature, 0.02 if self.similarity == "cosine" else 1.0)
        check_similarity(self.similarity)

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch.

        Args:
            query: (B, D), not normalised.
            document: (M, D), M = B * N, each query's documents in turn.
            labels: positives, absent documents, and whether other queries' documents are negatives.

        Returns:
            A scalar in float32, or float64 for float64 embeddings.

        Raises:
            TrainingError: embeddings that do not fit the labels.
        """
        labels.check(query, document)
        query, document = comparable(query, document, self.similarity)
        at_once = max(1, SCORES_AT_ONCE // len(document))
        if at_once >= len(query):
            return self._summed(query, document, labels, slice(None)) / len(query)
        parts = [
            checkpoint(self._summed, query, document, labels, slice(first, first + at_once), use_reentrant=False)
            for first in range(0, len(query), at_once)
        ]
        return torch.stack(parts).sum() / len(query)

    def left_out(self, labels: Labels, rows: slice = slice(None)) -> Tensor:
        """Documents that do not count for a query, (rows, M), bool.

        They are the absent ones, other queries' where those are no negatives, and the false negatives.

        Args:
            labels: of the whole batch.
            rows: the queries asked about; all by default.
        """
        B, N = labels.scores.shape
        left_out = labels.absent.expand(B, -1)[rows]
        if not labels.in_batch_negatives:
            query_number = torch.arange(B, device=labels.absent.device)
            left_out = left_out | (query_number.repeat_interleave(N) != query_number[rows, None])
        if self.false_negatives is not None:
            left_out = left_out | self.false_negatives.mask(labels, rows)
        return left_out

    def _summed(self, query: Tensor, document: Tensor, labels: Labels, rows: slice) -> Tensor:
        """Sum of the losses of some queries."""
        scores = products(query[rows], document) / self.temperature  # (rows, M)
        scores = scores.masked_fill(self.left_out(labels, rows), -torch.inf)
        return F.cross_entropy(scores, labels.positive[rows], reduction="sum")
