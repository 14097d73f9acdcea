"""Distillation of a reranker's scores as in bge-en-icl: cross-entropy of the student's own list with the reranker's.

    L = - mean over queries of sum over own documents d of t_d * log softmax(s(q, .) / temperature)_d

with t = softmax(scores). The reranker's scores are taken as they are, without a temperature. The published code calls
it KL; it differs by the teacher's entropy, so its gradients are the same. It is added to `Contrastive` (arXiv
2409.15700; FlagEmbedding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.objectives.similarity import Similarity, check_similarity, check_temperature
from training.objectives.teacher_lists import (
    Unscored,
    check_unscored,
    list_logits,
    log_probabilities,
    nothing,
    taught,
    teacher_probabilities,
)

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class RerankerDistillation:
    """Cross-entropy of each query's own list with a reranker's scores.

    Raises:
        ValueError: a temperature that is not positive, an unknown similarity or policy.
    """

    temperature: float = 0.02
    """Divides the student's similarities; the same as that of the contrastive term."""
    similarity: Similarity = "cosine"
    """Cosine, or dot: the raw dot product."""
    unscored: Unscored = "skip"
    """What happens to queries without scores: skip leaves them out of the mean, since only retrieval has a reranker."""

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature, 0.02)
        check_similarity(self.similarity)
        check_unscored(self.unscored)

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch; 0 if no query has a scored list.

        Args:
            query: (B, D), not normalised.
            document: (B * N, D), each query's documents in turn.
            labels: with the reranker's scores, (B, N).

        Returns:
            A scalar in float32, or float64 for float64 embeddings.

        Raises:
            TrainingError: embeddings that do not fit the labels, lists of one document, refused missing scores.
        """
        labels.check(query, document)
        rows, documents = taught(labels, self.unscored)
        if not len(rows):
            return nothing(query, document)
        logits = list_logits(query, document, rows, self.similarity)
        student = log_probabilities(logits / self.temperature, documents)
        teacher = teacher_probabilities(labels, rows, documents, 1.0, student)
        return -(teacher * student).sum(1).mean()
