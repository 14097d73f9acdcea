"""The loss of a reranker that gives a score after each of several layers: contrast at every one, the deepest teaches.

    L = sum over layers of ( cross-entropy of the list with its positive + cross-entropy of the list with the teacher )

The teacher is the softmax of the last layer's scores, detached, for all layers before it; or, where an outside teacher
scored the lists, the softmax of its scores, for all layers. Weights and temperature are 1, layers are summed, queries
averaged. Layer-wise trainer of FlagEmbedding, for bge-reranker-v2.5-gemma2-lightweight (arXiv 2409.15700, appendix).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F  # noqa: N812

from drama_models.errors import TrainingError
from training.objectives.teacher_lists import log_probabilities, taught, teacher_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels

# L = layers with a score, B = queries, N = documents per query


@dataclass(frozen=True, kw_only=True)
class Multilayer:
    """Contrast and distillation of a reranker's scores at several layers.

    Raises:
        ValueError: an unknown teacher.
    """

    teacher: Literal["last layer", "scores"] = "last layer"
    """What earlier layers learn from; scores are those of the labels, and teach the last layer too."""

    def __post_init__(self) -> None:
        if self.teacher not in ("last layer", "scores"):
            raise ValueError(f"teacher={self.teacher!r} is not known; use 'last layer', or 'scores'.")

    def __call__(self, layer_scores: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch.

        Args:
            layer_scores: scores of each query's own documents after each layer, shallow first, (L, B, N).
            labels: positives, absent documents, and an outside teacher's scores.

        Returns:
            A scalar in float32, or float64 for float64 scores.

        Raises:
            TrainingError: scores that do not fit the labels, lists of one document, missing teacher scores.
        """
        if layer_scores.dim() != 3 or layer_scores.shape[1:] != labels.scores.shape:
            raise TrainingError(
                f"layer scores of shape {tuple(layer_scores.shape)} came with labels of {tuple(labels.scores.shape)}; "
                "pass one (queries, documents) table for each layer."
            )
        if layer_scores.element_size() < 4:
            layer_scores = layer_scores.float()
        present = ~labels.absent.view(labels.scores.shape)
        students = [log_probabilities(scores, present) for scores in layer_scores]  # L of (B, N)
        loss = sum((F.nll_loss(student, labels.positive_column) for student in students), layer_scores.new_zeros(()))
        if self.teacher == "scores":
            rows, documents = taught(labels, "refuse")
            teacher = teacher_probabilities(labels, rows, documents, 1.0, students[-1])
        else:
            teacher = students.pop().detach().exp() * present
        return loss - sum((teacher * student).sum(1).mean() for student in students)
