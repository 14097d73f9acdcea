"""Several objectives of the same batch, added up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.objectives.labels import Labels
    from training.objectives.objective import Objective


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Sum of objectives: `WeightedSum(objectives=(Contrastive(), RerankerDistillation()))` is bge-en-icl's.

    Raises:
        ValueError: no objectives, weights that are not one for each.
    """

    objectives: tuple[Objective, ...]
    """What is added."""
    weights: tuple[float, ...] | None = None
    """Weight of each; 1 by default."""

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("objectives is empty; name at least one, such as Contrastive().")
        check_weights(self.weights, len(self.objectives), "objectives")

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """The sum; arguments and result as those of its objectives."""
        weights = self.weights or (1.0,) * len(self.objectives)
        losses = [
            weight * objective(query, document, labels)
            for objective, weight in zip(self.objectives, weights, strict=True)
        ]
        return torch.stack(losses).sum()


def check_weights(weights: Sequence[float] | None, count: int, of_what: str, name: str = "weights") -> None:
    """Raises a ValueError for weights that are not one finite, non-negative number for each of `count`."""
    if weights is None:
        return
    if len(weights) != count:
        raise ValueError(f"{name} has {len(weights)} values for {count} {of_what}; set one for each.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"{name}={tuple(weights)} must be finite, not negative, and not all zero.")
