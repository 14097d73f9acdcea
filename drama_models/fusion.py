"""Several rankings of the same documents as one, by their ranks alone, so that scores need no common scale.

Cormack et al., 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONSTANT = 60  # of the paper: how little the first ranks stand out


def reciprocal_rank_fusion(
    rankings: Iterable[Mapping[str, int]], *, constant: float = CONSTANT
) -> list[tuple[str, float]]:
    """Fuse rankings: a document scores the sum of 1 / (constant + rank) over the rankings that hold it.

    Args:
        rankings: rank of each document in each of them, counted from 1.
        constant: above -1; the larger, the less the first ranks stand out.

    Returns:
        (document id, fused score), best first; ties stay in the order in which the documents are first met.

    Raises:
        ValueError: a constant of -1 or less, which would divide by zero.
    """
    if constant <= -1:
        raise ValueError(f"constant={constant} must be above -1; {CONSTANT} is the usual choice.")
    fused: dict[str, float] = {}
    for ranking in rankings:
        for document, rank in ranking.items():
            fused[document] = fused.get(document, 0.0) + 1 / (constant + rank)
    return sorted(fused.items(), key=lambda scored: -scored[1])  # stable


def ranks(hits: Sequence[tuple[str, float]]) -> dict[str, int]:
    """Rank of each document in a list of hits, best first, counted from 1."""
    return {document: rank for rank, (document, _) in enumerate(hits, start=1)}
