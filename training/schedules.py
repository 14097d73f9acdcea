"""Learning rate by optimiser step: linear warm-up from zero, then linear decay to a floor.

One rule serves every recipe: DRAGON and DRAMA decay to zero (arXiv 2302.07452; 2502.18460), listwise specialisation to
a tenth (arXiv 2502.19712, section 4). Progressive supervision starts the rule anew with every teacher.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int, floor: float = 0.0) -> float:
    """Share of the base rate that a step is taken with.

    Args:
        step: 0-based number of the optimiser step; with a warm-up the first one has rate 0.
        warmup_steps: steps over which the rate rises linearly.
        total_steps: step at which the decay would reach zero.
        floor: share below which the rate does not fall.
    """
    if step < warmup_steps:
        return step / warmup_steps
    left = (total_steps - step) / max(total_steps - warmup_steps, 1)
    return max(floor, left, 0.0)


def linear_schedule(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, floor: float = 0.0, starts: Sequence[int] = (0,)
) -> LambdaLR:
    """`learning_rate_factor` as a torch scheduler.

    Args:
        optimizer: whose rates are scheduled.
        warmup_steps: as there, after each start.
        total_steps: of the whole run.
        floor: as there.
        starts: steps at which the schedule begins, ascending, 0 first; each part ends where the next begins.
    """
    ends = [*starts[1:], total_steps]

    def factor(step: int) -> float:
        part = bisect_right(starts, step) - 1
        return learning_rate_factor(
            step - starts[part], warmup_steps=warmup_steps, total_steps=ends[part] - starts[part], floor=floor
        )

    return LambdaLR(optimizer, factor)
