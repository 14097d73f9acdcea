"""From a teacher's ranked list to labels: which ranks are positives and which are hard negatives.

DRAMA, section 3.1 (arXiv 2502.18460): positives are the first m, negatives the last n of the first k. DRAGON's ranks
46 to 50 (arXiv 2302.07452) are the same rule with k = 50, n = 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class RankWindows:
    """Rank windows of one source of labels."""

    k: int = 50
    """Length of the list that counts."""
    positives: int = 10
    """Documents from its top."""
    negatives: int = 20
    """Documents from its end."""

    def __post_init__(self) -> None:
        if not 0 < self.positives + self.negatives <= self.k:
            raise ValueError(
                f"positives={self.positives} and negatives={self.negatives} do not fit into k={self.k}; set a larger k."
            )


def label_pools(ranked_ids: Sequence[str], windows: RankWindows) -> tuple[list[str], list[str]]:
    """Positive and hard-negative ids of a ranked list, best first.

    A list shorter than k keeps its positives; its negatives are those of its documents whose ranks fall into the
    window.
    """
    counted = list(ranked_ids[: windows.k])
    return counted[: windows.positives], counted[windows.k - windows.negatives :]
