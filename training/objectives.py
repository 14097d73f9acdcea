"""Training objectives as pure functions of embeddings, and the loss module that the trainer calls.

    L = -log( exp(s(q, d+)/t) / sum over all documents d of the batch of exp(s(q, d)/t) ),  mean over queries

with cosine or dot product s. Matryoshka: the same at several prefix sizes, each cut before normalising, summed. DRAMA,
section 3.2 (arXiv 2502.18460); DRAGON with dot product and t = 1 (arXiv 2302.07452). Log-sum-exp in float32 or better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer


def info_nce(
    query: Tensor,
    document: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    normalise: bool = True,
    in_batch_negatives: bool = True,
    absent: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of one positive for each query against the other documents of the batch.

    Args:
        query: (B, D), not normalised.
        document: (B * N, D): the documents of each query in turn.
        positive: row of each query's positive in `document`, (B,), int64.
        temperature: divides the scores, > 0.
        normalise: cosine instead of dot product.
        in_batch_negatives: whether other queries' documents count as negatives too.
        absent: rows of `document` that only fill the batch, (B * N,), bool; their score is minus infinity.

    Returns:
        A scalar in float32, or float64 for float64 inputs.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive; 0.02 is a usual choice for cosines.")
    query, document = (x if x.dtype == torch.float64 else x.float() for x in (query, document))
    if normalise:
        query, document = F.normalize(query, dim=-1), F.normalize(document, dim=-1)
    scores = query @ document.T / temperature  # (B, B * N)
    if absent is not None:
        scores = scores.masked_fill(absent, -torch.inf)
    if not in_batch_negatives:
        per_query = len(document) // len(query)
        owner = torch.arange(len(document), device=scores.device) // per_query  # (B * N,)
        others = owner != torch.arange(len(query), device=scores.device)[:, None]
        scores = scores.masked_fill(others, -torch.inf)
    return F.cross_entropy(scores, positive)


def matryoshka_info_nce(
    query: Tensor,
    document: Tensor,
    positive: Tensor,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    temperature: float,
) -> Tensor:
    """Weighted sum of `info_nce` on cosines over prefixes of the embeddings; shapes as there.

    Args:
        query: (B, D).
        document: (B * N, D).
        positive: (B,).
        dims: prefix sizes, each at most D.
        weights: one for each size; 1 by default.
        temperature: as in `info_nce`.
    """
    losses = [
        weight * info_nce(query[:, :dim], document[:, :dim], positive, temperature=temperature)
        for dim, weight in zip(dims, weights or [1.0] * len(dims), strict=True)
    ]
    return torch.stack(losses).sum()


def trainer_loss(
    model: SentenceTransformer, *, dims: Sequence[int], weights: Sequence[float] | None, temperature: float
) -> torch.nn.Module:
    """`matryoshka_info_nce` as the sentence-transformers trainer wants it: its own losses, which are the same function.

    Args:
        model: whose embeddings are cut and compared.
        dims: prefix sizes.
        weights: one for each size; 1 by default.
        temperature: divides the cosines.
    """
    contrastive = MultipleNegativesRankingLoss(model, scale=1 / temperature)
    return MatryoshkaLoss(model, contrastive, list(dims), list(weights) if weights else None)
