"""Any objective at several prefix sizes of the embeddings, so that a cut embedding still works.

    L = sum over sizes d of w_d * objective(query[:, :d], document[:, :d])

The cut comes before the objective's normalisation, as it does in inference. Kusupati et al., 2022, arXiv 2205.13147;
DRAMA, section 3.2. A batch's negatives and temperature are the same at every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from drama_models.errors import DimensionError
from training.objectives.weighted_sum import check_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from training.objectives.labels import Labels
    from training.objectives.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """An objective at several embedding sizes.

    Raises:
        ValueError: no sizes, one that is not positive or stands twice, weights that are not one for each size.
    """

    objective: Objective
    """What is computed at each size."""
    dims: tuple[int, ...]
    """Sizes; name the full one too if it is to be trained."""
    weights: tuple[float, ...] | None = None
    """Weight of each size; 1 by default."""

    def __post_init__(self) -> None:
        if not self.dims:
            raise ValueError("dims is empty; name the sizes, such as 768, 512, 256, 128, 64.")
        check_sizes(self.dims)
        check_weights(self.weights, len(self.dims), "dims")

    def __call__(self, query: Tensor, document: Tensor, labels: Labels) -> Tensor:
        """Weighted sum of the objective over the sizes; arguments and result as the objective's.

        Raises:
            DimensionError: a size beyond the embeddings'.
        """
        if max(self.dims) > query.shape[-1]:
            raise DimensionError(
                f"dims={self.dims} go beyond the {query.shape[-1]} dimensions of the embeddings; use sizes up to that."
            )
        weights = self.weights or (1.0,) * len(self.dims)
        losses = [
            weight * self.objective(query[:, :dim], document[:, :dim], labels)
            for dim, weight in zip(self.dims, weights, strict=True)
        ]
        return torch.stack(losses).sum()


def check_sizes(dims: Sequence[int]) -> None:
    """Raises a ValueError for sizes that are not positive and different."""
    if any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
        raise ValueError(f"dims={tuple(dims)} must be different positive sizes, such as 768, 512, 256, 128, 64.")
