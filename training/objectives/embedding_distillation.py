"""Embedding distillation: a text's embedding is pulled to the one that a teacher gives the same text.

    L = mean over texts of 1 - cos(student, teacher)

No query, positive or negative is needed, so any text teaches, and teacher embeddings are computed once for all runs
(Reimers and Gurevych, 2020, https://arxiv.org/abs/2004.09813, where the distance is the squared one; for unit vectors
that is twice this). A teacher of another size is projected to the student's beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drama_models.errors import TrainingError
from training.objectives.similarity import comparable

if TYPE_CHECKING:
    from torch import Tensor


def embedding_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine distance between each student embedding and the teacher's of the same text.

    Args:
        student: (n, D), any floating type, not normalised.
        teacher: (n, D), not normalised; no gradient reaches it.

    Returns:
        A scalar in float32, or float64 for float64 embeddings; from 0 to 2. A zero row counts 1.

    Raises:
        TrainingError: shapes that differ, or no text at all.
    """
    if student.shape != teacher.shape or not len(student):
        raise TrainingError(
            f"student embeddings {tuple(student.shape)} and teacher embeddings {tuple(teacher.shape)} must be one for "
            "each text and of one size; project the teacher's to the student's size first."
        )
    student, teacher = comparable(student, teacher.detach(), "cosine")
    return (1 - (student * teacher).sum(dim=1)).mean()
