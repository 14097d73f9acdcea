"""Hard-concrete gates: the distribution behind every mask.

A gate is one `log_alpha` per prunable unit. While masks are learned it is sampled, so that the language-model loss
reaches `log_alpha` through the value of the gate; its expected value is what the size constraint sees;
`deterministic_mask` is what evaluation and slicing use. Nothing here knows about models.

Louizos et al., 2018, arXiv 1712.01312; constants and the deterministic rule as in LLM-Shearing (Xia et al., 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma, zeta: the interval a sample is stretched to before it is cut to [0, 1]
TEMPERATURE = 2 / 3
MARGIN = 1e-6  # of uniform draws and of probabilities
INITIAL_MEAN, INITIAL_STD = 5.0, 0.01
LOG_ALPHA_LIMIT = math.log(100)  # gates are clamped to [-LIMIT, LIMIT], odds of 1:100 either way
DETERMINISTIC_SHARPNESS = 0.8 / TEMPERATURE
MAX_SPARSITY = 0.9528  # the largest expected sparsity that clamped gates can reach is 0.952884


def initial_log_alpha(standard_normal: Tensor) -> Tensor:
    """Starting logits for draws from a standard normal, any shape: close to open, whatever the target sparsity."""
    return INITIAL_MEAN + INITIAL_STD * standard_normal


def clamp_(log_alpha: Tensor) -> Tensor:
    """Clamp logits in place, without gradient; called at the start of every forward pass."""
    with torch.no_grad():
        return log_alpha.clamp_(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gate values for given noise.

    Args:
        log_alpha: logits, any shape.
        uniform: draws from (MARGIN, 1 - MARGIN), same shape.

    Returns:
        Values in [0, 1]; differentiable in `log_alpha` wherever they are neither 0 nor 1.
    """
    noise = torch.log(uniform) - torch.log(1 - uniform)
    soft = torch.sigmoid((noise + log_alpha) / TEMPERATURE)
    return (soft * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def zero_probability(log_alpha: Tensor) -> Tensor:
    """P(gate = 0), elementwise, kept within [MARGIN, 1 - MARGIN]."""
    shift = TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH)
    return torch.sigmoid(shift - log_alpha).clamp(MARGIN, 1 - MARGIN)


def expected_score(log_alpha: Tensor) -> Tensor:
    """P(gate > 0), elementwise: the expected number of kept units is the sum of it."""
    return 1 - zero_probability(log_alpha)


def sparsity(score: Tensor) -> Tensor:
    """Expected share of dropped units in each row of scores, (..., units) to (...)."""
    return 1 - score.mean(dim=-1)


def deterministic_mask(log_alpha: Tensor, keep: int | None = None) -> Tensor:
    """Gate values for evaluation and slicing, row by row.

    Args:
        log_alpha: logits, (units,) or (rows, units).
        keep: units that stay in each row; None drops as many as the row expects to, rounded half to even.

    Returns:
        Same shape: 0 where dropped, elsewhere sigmoid(1.2 * log_alpha), always below 1. Of equal gates the first go.

    Raises:
        ValueError: `keep` is below 0 or more than a row has.
    """
    if keep is not None and not 0 <= keep <= log_alpha.shape[-1]:
        raise ValueError(f"keep={keep} must be between 0 and the {log_alpha.shape[-1]} units of a row.")
    soft = torch.sigmoid(DETERMINISTIC_SHARPNESS * log_alpha)
    rows, logits = soft.reshape(-1, soft.shape[-1]).clone(), log_alpha.reshape(-1, soft.shape[-1])
    for row, row_logits in zip(rows, logits, strict=True):
        expected_drops = len(row) - expected_score(row_logits).sum().item()
        drops = round(expected_drops) if keep is None else len(row) - keep
        row[torch.argsort(row, stable=True)[:drops]] = 0
    return rows.view_as(soft)
