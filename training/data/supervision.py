"""From teachers' ranked lists to labels: which ranks are positives and hard negatives, and whose list counts when.

DRAMA, section 3.1 (arXiv 2502.18460): positives are the first m, negatives the last n of the first k. DRAGON's ranks
46 to 50 (arXiv 2302.07452, section 3) are the same rule with k = 50, n = 5. Of several teachers each query draws one
each time it comes up, uniformly among the active ones; progressive supervision makes one more active in every
iteration, in the given order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
        if self.positives < 1 or self.negatives < 0:
            raise ValueError(f"positives={self.positives} must be at least 1, negatives={self.negatives} at least 0.")
        if self.positives + self.negatives > self.k:
            raise ValueError(
                f"positives={self.positives} and negatives={self.negatives} do not fit into k={self.k}; set a larger k."
            )

    @property
    def top(self) -> slice:
        """Places of the positives in a ranked list."""
        return slice(0, self.positives)

    @property
    def end(self) -> slice:
        """Places of the hard negatives; a list shorter than k has those of them that it reaches."""
        return slice(self.k - self.negatives, self.k)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A system whose ranked lists are labels."""

    name: str
    """For logs and the card."""
    run: Path
    """Its TREC run over the collection."""
    weight: float = 1.0
    """Of its scores, where the teachers are fused."""
    windows: RankWindows | None = None
    """Ranks that count in its lists; the dataset's by default."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Whose labels count, and when; defaults as for DRAGON (arXiv 2302.07452, section 4)."""

    kind: Literal["single", "fused", "uniform", "progressive"] = "uniform"
    """One teacher; one list fused from all; all teachers from the start; or one more in each iteration."""
    epochs_per_iteration: int = 20
    """Epochs until the next teacher joins."""
    steps_per_iteration: int | None = None
    """The same in steps, where a run is shorter than epochs; goes before epochs_per_iteration."""
    newest_only_at_end: bool = False
    """Whether the last iteration learns from the last teacher alone (worse in the paper's table 3)."""
    normalisation: Literal["min-max", "none"] = "min-max"
    """Of each list's scores before they are fused. A document that a list lacks gets that list's lowest score."""

    def __post_init__(self) -> None:
        if self.epochs_per_iteration < 1 or (self.steps_per_iteration or 1) < 1:
            raise ValueError(
                f"epochs_per_iteration={self.epochs_per_iteration} and steps_per_iteration={self.steps_per_iteration} "
                "must be at least 1."
            )

    def iteration(self, teachers: int, *, epoch: int, step: int = 0) -> int:
        """Iteration of a step, counted from 1; beyond the last teacher's it stays the last."""
        if self.kind != "progressive":
            return 1
        per_step = self.steps_per_iteration
        passed = epoch // self.epochs_per_iteration if per_step is None else step // per_step
        return min(passed + 1, teachers)

    def active(self, teachers: int, iteration: int) -> range:
        """Places of the active teachers in their order."""
        if self.kind != "progressive":
            return range(teachers)
        if self.newest_only_at_end and iteration == teachers:
            return range(teachers - 1, teachers)
        return range(iteration)
