"""The contrastive objective as sentence-transformers has it: its own losses, which are the same function as ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from sentence_transformers import SentenceTransformer


def trainer_loss(
    model: SentenceTransformer, *, dims: Sequence[int], weights: Sequence[float] | None, temperature: float
) -> torch.nn.Module:
    """`Matryoshka` over `Contrastive` as the sentence-transformers trainer wants it.

    Args:
        model: whose embeddings are cut and compared.
        dims: prefix sizes.
        weights: one for each size; 1 by default.
        temperature: divides the cosines.
    """
    contrastive = MultipleNegativesRankingLoss(model, scale=1 / temperature)
    return MatryoshkaLoss(model, contrastive, list(dims), list(weights) if weights else None)
