"""The loss that specialises a retriever to a domain: listwise distillation and a little contrast.

    L = KL of the lists (student 0.05, teacher 0.3) + 0.1 * InfoNCE (0.01), false negatives left out of the latter

A negative whose teacher score is above 0.6 of the positive's is taken for a positive. Teacher scores are normalised to
0..1 between the 1st and the 99th percentile of all scores of one retriever, collection and kind of query, before they
are mixed. Tamber et al., 2025, arXiv 2502.19712, section 3; the reference computes in float64 what log-sum-exp does in
float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from training.objectives.contrastive import Contrastive
from training.objectives.false_negatives import FalseNegatives
from training.objectives.listwise import Listwise

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from training.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Specialisation:
    """Listwise distillation plus a weighted contrastive term.

    Raises:
        ValueError: a weight that is negative.
    """

    listwise: Listwise = field(default_factory=Listwise)
    """The distillation."""
    contrastive: Contrastive = field(
        default_factory=lambda: Contrastive(temperature=0.01, false_negatives=FalseNegatives(share=0.6))
    )
    """The contrast, with its own temperature and filter of false negatives."""
    contrastive_weight: float = 0.1
    """Weight of the contrast beside the distillation's 1."""

    def __post_init__(self) -> None:
        if not self.contrastive_weight >= 0:
            raise ValueError(f"contrastive_weight={self.contrastive_weight} must not be negative; 0.1 is the paper's.")

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Loss of a batch; arguments, result and errors as those of `Listwise`."""
        distilled = self.listwise(query, document, labels)
        return distilled + self.contrastive_weight * self.contrastive(query, document, labels)


@dataclass(frozen=True, kw_only=True)
class ScoreRange:
    """Where a teacher's scores of one group (retriever, collection, kind of query) begin and end."""

    low: float
    """Becomes 0."""
    high: float
    """Becomes 1."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"scores from {self.low} to {self.high} have no range to be normalised by; "
                "check that the teacher tells documents apart."
            )

    @classmethod
    def of(cls, scores: ArrayLike, *, low: float = 1.0, high: float = 99.0) -> ScoreRange:
        """Percentiles of all scores of a group, linearly interpolated.

        Args:
            scores: of every document of every kept list, any shape.
            low: percentile that becomes 0.
            high: percentile that becomes 1.

        Raises:
            ValueError: no scores, some that are not finite, or all the same.
        """
        pool = np.asarray(scores, dtype=np.float64)
        if not pool.size or not np.isfinite(pool).all():
            raise ValueError("percentiles need finite teacher scores; leave out lists that the teacher did not score.")
        return cls(low=float(np.percentile(pool, low)), high=float(np.percentile(pool, high)))

    def normalise(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Scores moved into 0..1 and clipped there, shape as given."""
        moved = (np.asarray(scores, dtype=np.float64) - self.low) / (self.high - self.low)
        return np.clip(moved, 0.0, 1.0)
