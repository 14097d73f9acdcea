"""The size constraint: multipliers that rise until each dimension has its target sparsity.

For every masked dimension m with row sparsities s and target t:

    penalty_m = mean over rows of  lambda_1 * (s - t) + lambda_2 * (s - t)^2

The masks descend on it, the multipliers ascend. Targets rise linearly during a warm-up. Sheared-LLaMA, section 2.1 and
LLM-Shearing's code where the two differ (arXiv 2310.06694).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruning.hard_concrete import sparsity
from pruning.masks import expected_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pruning.shape import BackboneShape


def warmed_up(target: float, step: int, warmup_steps: int, start: float = 0.0) -> float:
    """Target sparsity in force at a step (completed optimiser steps): linear from `start`, then constant."""
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return start + (target - start) * progress


def constraint_penalty(row_sparsity: Tensor, target: Tensor | float, lambda_1: Tensor, lambda_2: Tensor) -> Tensor:
    """Mean over rows of the linear and the quadratic term; `row_sparsity` of shape (rows,) or a scalar."""
    gap = row_sparsity - target
    return (lambda_1 * gap + lambda_2 * gap.square()).mean()


class Lagrangian(nn.Module):
    """One pair of multipliers for each masked dimension.

    Args:
        targets: final sparsity of each dimension.
        warmup_steps: steps over which the targets rise.
        start_sparsity: where they start.
    """

    def __init__(self, targets: Mapping[str, float], warmup_steps: int, start_sparsity: float = 0.0) -> None:
        super().__init__()
        self.targets, self.warmup_steps, self.start_sparsity = dict(targets), warmup_steps, start_sparsity
        self.lambda_1 = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in targets})
        self.lambda_2 = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in targets})

    def targets_at(self, step: int) -> dict[str, float]:
        """Sparsity asked of each dimension at a step."""
        return {
            name: warmed_up(target, step, self.warmup_steps, self.start_sparsity)
            for name, target in self.targets.items()
        }

    def penalty(self, scores: Mapping[str, Tensor], step: int) -> Tensor:
        """Sum of the penalties of all dimensions, a scalar in float32.

        Args:
            scores: P(gate > 0) of each masked dimension, (units,) or (layers, units).
            step: completed optimiser steps.
        """
        targets = self.targets_at(step)
        terms = [
            constraint_penalty(sparsity(score), targets[name], self.lambda_1[name], self.lambda_2[name])
            for name, score in scores.items()
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def target_sparsities(source: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """1 - target/source of every dimension that is cut, from the mask shapes of both."""
    return {name: 1 - target[name][-1] / shape[-1] for name, shape in source.items() if target[name][-1] != shape[-1]}


def overall_sparsity(scores: Mapping[str, Tensor], source: BackboneShape) -> Tensor:
    """Expected share of prunable weights that go, over all dimensions together; a scalar."""
    return 1 - expected_parameters(scores, source) / source.prunable_parameters
