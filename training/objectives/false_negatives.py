"""Which negatives are taken for positives that nobody labelled, by a teacher's score beside the positive's.

A document of a query's own list leaves the query's denominator when the teacher scored it above a share of the
positive's score, strictly (0.6 in arXiv 2502.19712), or within a margin of it, for scores that may be negative. It
leaves at every place where it stands in the batch, in any query's list; so do second copies of the positive. Only
documents of the own list can be judged, since the teacher saw no others. A score of exactly the limit stays, also after
rounding to float32, in which caches keep scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class FalseNegatives:
    """Positive-aware filter of negatives.

    Raises:
        ValueError: both rules or none, a share that is not positive, a negative margin.
    """

    share: float | None = None
    """Above this share of the positive's score a negative is a false one; for scores that are never negative."""
    margin: float | None = None
    """Above the positive's score less this a negative is a false one; for logits."""

    def __post_init__(self) -> None:
        if (self.share is None) == (self.margin is None):
            raise ValueError("set one of share, such as 0.6 of the positive's score, and margin, such as 1.0 below it.")
        if self.share is not None and not self.share > 0:
            raise ValueError(f"share={self.share} must be positive; 0.6 is a usual choice.")
        if self.margin is not None and not self.margin >= 0:
            raise ValueError(f"margin={self.margin} must not be negative; 0 keeps out what beats the positive.")

    def mask(self, labels: Labels, rows: slice = slice(None)) -> Tensor:
        """Documents that are no negatives of a query, (rows, M), bool; its own positive is never among them.

        Args:
            labels: of the whole batch, with `identity` where a document may occur twice.
            rows: the queries asked about; all by default.
        """
        identity = torch.arange(len(labels.absent), device=labels.absent.device)
        if labels.identity is not None:
            identity = labels.identity.unique(return_inverse=True)[1]  # (M,), 0 to number of different documents - 1
        judged = self._own(labels)[rows]  # (rows, N)
        query_number, column = judged.nonzero(as_tuple=True)
        flagged = judged.new_zeros(len(judged), int(identity.max()) + 1)  # (rows, different documents)
        flagged[query_number, identity.view(labels.scores.shape)[rows][query_number, column]] = True
        mask = flagged[:, identity]
        mask[torch.arange(len(mask), device=mask.device), labels.positive[rows]] = False
        return mask

    def _own(self, labels: Labels) -> Tensor:
        """Own documents that are right or taken for right, (B, N), bool; a missing score decides nothing."""
        column = labels.positive_column[:, None]
        best = labels.scores.gather(1, column)
        limit = best * self.share if self.share is not None else best - (self.margin or 0.0)
        in_single = labels.scores == labels.scores.float()  # as a cache keeps them, so perhaps rounded to that
        single, double = (torch.finfo(kind).eps for kind in (torch.float32, torch.float64))
        rounding = torch.where(in_single, single, double) * 4 * best.abs()
        return (labels.scores > limit + rounding).scatter(1, column, True) & ~labels.absent.view(labels.scores.shape)
