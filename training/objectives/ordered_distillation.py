"""The other distillation of FlagEmbedding (`m3_kd_loss`): each own document is a target, weighted by the reranker.

    L = - sum over own documents g of mean over queries i of t_ig * log softmax(s_i over all but own ones before g)_g

with t = softmax(reranker scores of the own list). It takes the place of the contrastive loss instead of joining it;
neither bge-en-icl nor bge-multilingual-gemma2 was trained with it. Own documents stand in the order in which they are
to rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.objectives.contrastive import Contrastive
from training.objectives.similarity import Similarity, comparable, products
from training.objectives.teacher_lists import nothing, taught, teacher_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class OrderedDistillation:
    """Contrastive loss with every own document as target, weighted by a reranker; replaces `Contrastive`.

    Queries without scores have no term here: use it on datasets that a reranker scored.

    Raises:
        ValueError: a temperature that is not positive, an unknown similarity.
    """

    temperature: float = 0.02
    """Divides the student's similarities."""
    similarity: Similarity = "cosine"
    """Cosine, or dot: the raw dot product."""

    def __post_init__(self) -> None:
        self._contrastive()

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch.

        Args:
            query: (B, D), not normalised.
            document: (M, D), M = B * N, each query's documents in turn.
            labels: with the reranker's scores, (B, N).

        Returns:
            A scalar in float32, or float64 for float64 embeddings.

        Raises:
            TrainingError: embeddings that do not fit the labels, lists of one document, missing scores.
        """
        labels.check(query, document)
        rows, documents = taught(labels, "refuse")
        if not len(rows):
            return nothing(query, document)
        query, document = comparable(query, document, self.similarity)
        scores = products(query, document) / self.temperature  # (B, M)
        scores = scores.masked_fill(self._contrastive().left_out(labels), -torch.inf)
        B, N = labels.scores.shape
        own = torch.arange(B * N, device=scores.device).view(B, N)
        others = scores.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1): documents of other queries
        listed = scores.gather(1, own)  # (B, N)
        later = listed.flip(1).logcumsumexp(1).flip(1)  # (B, N): own documents from each one on
        surprise = torch.logaddexp(later, others) - listed
        teacher = teacher_probabilities(labels, rows, documents, 1.0, scores)
        return (teacher * surprise.masked_fill(~documents, 0.0)).sum(1).mean()

    def _contrastive(self) -> Contrastive:
        return Contrastive(temperature=self.temperature, similarity=self.similarity)
