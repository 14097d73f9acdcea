"""Similarity of query and document embeddings, in float32 or better whatever came in.

Half precision would do for the encoder but not here: raw dot products of un-normalised states leave its range, and a
cosine divided by 0.02 keeps two digits. Autocast is switched off, since it would take the product back to half
precision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from torch import Tensor

Similarity = Literal["cosine", "dot"]


def comparable(query: Tensor, document: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Embeddings whose dot product is the similarity.

    Args:
        query: (B, D), any floating type.
        document: (M, D).
        similarity: cosine makes both unit length, dot leaves them.

    Returns:
        Both in float32, or float64 where they came so.
    """
    query, document = (x if x.dtype == torch.float64 else x.float() for x in (query, document))
    return (unit_length(query), unit_length(document)) if similarity == "cosine" else (query, document)


def products(query: Tensor, document: Tensor) -> Tensor:
    """Dot product of every query with every document, (B, M), outside autocast."""
    with torch.autocast(query.device.type, enabled=False):
        return query @ document.T


def own_products(query: Tensor, document: Tensor) -> Tensor:
    """Dot product of every query with its own documents, (B, N), outside autocast."""
    B, D = query.shape
    with torch.autocast(query.device.type, enabled=False):
        return (document.view(B, -1, D) @ query[:, :, None]).squeeze(-1)


def unit_length(x: Tensor) -> Tensor:
    """Rows scaled to unit length; a zero row stays zero. Neither huge nor tiny rows overflow on the way.

    Args:
        x: (rows, D), float32 or float64.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)  # any positive factor leaves result and gradient as they are
    scaled = x / torch.where(largest > 0, largest, 1.0)
    return F.normalize(scaled, dim=-1, eps=0.5)  # a scaled row is at least 1 long unless it is zero


def check_similarity(similarity: str) -> None:
    """Raises a ValueError for a similarity that there is not."""
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity={similarity!r} is not known; use cosine, or dot.")


def check_temperature(name: str, temperature: float, usual: float) -> None:
    """Raises a ValueError for a temperature that is not positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name}={temperature} must be positive; {usual} is a usual choice.")
