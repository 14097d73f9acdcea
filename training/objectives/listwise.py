"""Listwise distillation: the student's distribution over a query's own list is pulled to the teacher's.

    L = mean over queries of KL( softmax(teacher scores / t_teacher) || softmax(s(q, d) / t_student) )

Temperatures of arXiv 2502.19712, section 3: 0.3 for teacher scores normalised to 0..1, 0.05 for the student's cosines.
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
)

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Listwise:
    """KL divergence of the student's list from the teacher's.

    Raises:
        ValueError: a temperature that is not positive, an unknown similarity or policy.
    """

    student_temperature: float = 0.05
    """Divides the student's similarities."""
    teacher_temperature: float = 0.3
    """Divides the teacher's scores."""
    similarity: Similarity = "cosine"
    """Cosine, or dot: the raw dot product."""
    unscored: Unscored = "refuse"
    """What happens to queries without teacher scores: refuse is an error, skip leaves them out of the mean."""

    def __post_init__(self) -> None:
        check_temperature("student_temperature", self.student_temperature, 0.05)
        check_temperature("teacher_temperature", self.teacher_temperature, 0.3)
        check_similarity(self.similarity)
        check_unscored(self.unscored)

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch.

        Args:
            query: (B, D), not normalised.
            document: (B * N, D), each query's documents in turn.
            labels: with teacher scores, (B, N).

        Returns:
            A scalar in float32, or float64 for float64 embeddings; at least 0.

        Raises:
            TrainingError: embeddings that do not fit the labels, lists of one document, refused missing scores.
        """
        labels.check(query, document)
        rows, documents = taught(labels, self.unscored)
        if not len(rows):
            return nothing(query, document)
        logits = list_logits(query, document, rows, self.similarity)
        student = log_probabilities(logits / self.student_temperature, documents)
        teacher = log_probabilities(labels.scores[rows].to(student.dtype) / self.teacher_temperature, documents)
        divergence = teacher.exp() * (teacher - student)  # 0 at documents left out: both logarithms are 0 there
        return divergence.sum(1).mean()
