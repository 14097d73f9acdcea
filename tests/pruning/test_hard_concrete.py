"""Gates against sampling and against the closed form of the distribution."""

from __future__ import annotations

import pytest
import torch

from pruning.hard_concrete import (
    LOG_ALPHA_LIMIT,
    MARGIN,
    MAX_SPARSITY,
    clamp_,
    deterministic_mask,
    expected_score,
    initial_log_alpha,
    sample,
    sparsity,
    zero_probability,
)


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.7, 4.0])
def test_closed_form_matches_the_frequency_of_zeros(log_alpha: float) -> None:
    draws = sample(torch.full((200_000,), log_alpha), torch.empty(200_000).uniform_(MARGIN, 1 - MARGIN))
    expected = zero_probability(torch.tensor(log_alpha)).item()
    # a frequency over 200,000 draws has a standard error of at most 0.0011
    assert abs((draws == 0).float().mean().item() - expected) < 0.006
    assert ((draws >= 0) & (draws <= 1)).all()


def test_gradient_reaches_only_gates_that_are_neither_open_nor_shut() -> None:
    log_alpha = torch.zeros(1000, requires_grad=True)
    values = sample(log_alpha, torch.empty(1000).uniform_(MARGIN, 1 - MARGIN))
    (gradient,) = torch.autograd.grad(values.sum(), log_alpha)
    inside = (values > 0) & (values < 1)
    assert (gradient[inside] > 0).all()
    assert (gradient[~inside] == 0).all()
    assert inside.any()
    assert (~inside).any()


def test_clamped_gates_reach_the_stated_bounds() -> None:
    shut, open_ = clamp_(torch.tensor([[-50.0], [50.0]]))
    assert shut.item() == pytest.approx(-LOG_ALPHA_LIMIT)
    assert sparsity(expected_score(shut)).item() == pytest.approx(0.95287, abs=1e-4)
    assert sparsity(expected_score(open_)).item() == pytest.approx(0.0020178, abs=1e-5)
    assert sparsity(expected_score(shut)).item() > MAX_SPARSITY


def test_initial_gates_are_open_after_the_first_clamp() -> None:
    drawn = initial_log_alpha(torch.randn(500))
    assert drawn.mean().item() == pytest.approx(5.0, abs=0.01)
    assert (clamp_(drawn) == LOG_ALPHA_LIMIT).all()


@pytest.mark.parametrize("keep", [0, 1, 3, 6])
def test_deterministic_mask_keeps_the_largest(keep: int) -> None:
    log_alpha = torch.randn(4, 6)
    mask = deterministic_mask(log_alpha, keep)
    for row, logits in zip(mask, log_alpha, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(logits.topk(keep).indices.tolist())
    assert mask.max() < 1


@pytest.mark.parametrize("keep", [-1, 7])
def test_more_units_than_there_are_cannot_stay(keep: int) -> None:
    with pytest.raises(ValueError, match=f"keep={keep} must be between 0 and the 6 units of a row"):
        deterministic_mask(torch.randn(4, 6), keep)


def test_ties_are_broken_by_position() -> None:
    mask = deterministic_mask(torch.full((5,), 2.0), keep=2)
    assert mask.nonzero().flatten().tolist() == [3, 4]
