"""What an objective is: a callable that turns a batch's embeddings and labels into a scalar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels


class Objective(Protocol):
    """Anything that can be minimised: `Contrastive`, `Listwise`, a `WeightedSum` of them, `Matryoshka` over any."""

    def __call__(self, query: Tensor, document: Tensor, labels: Labels, /) -> Tensor:
        """Loss of a batch.

        Args:
            query: (B, D), not normalised.
            document: (B * N, D), each query's documents in turn, not normalised.
            labels: which of them is right, which only fill the batch, and what the teacher said.

        Returns:
            A scalar in float32, or float64 for float64 embeddings.
        """
        ...
