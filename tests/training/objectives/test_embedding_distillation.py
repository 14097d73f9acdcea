"""Embedding distillation against one cosine at a time in Python's own numbers, and against PyTorch's own loss."""

from __future__ import annotations

import pytest
import torch

from drama_models.errors import TrainingError
from tests.training.objectives import plain
from training.objectives.embedding_distillation import embedding_distillation


def drawn(seed: int, rows: int = 5, size: int = 7) -> torch.Tensor:
    return torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_mean_cosine_distance() -> None:
    student, teacher = drawn(0), drawn(1)
    distances = [1 - plain.score(a, b) for a, b in zip(student, teacher, strict=True)]
    assert embedding_distillation(student, teacher).item() == pytest.approx(sum(distances) / 5, rel=1e-12)


def test_loss_and_gradient_are_those_of_pytorchs_cosine_embedding_loss() -> None:
    ours, theirs = drawn(2).requires_grad_(), drawn(2).requires_grad_()
    loss = embedding_distillation(ours, drawn(3))
    expected = torch.nn.functional.cosine_embedding_loss(theirs, drawn(3), torch.ones(5))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_length_of_either_does_not_matter_and_opposite_vectors_cost_two() -> None:
    student = drawn(4)
    assert embedding_distillation(student, 1000 * student).item() == pytest.approx(0, abs=1e-12)
    assert embedding_distillation(student, -0.001 * student).item() == pytest.approx(2)


def test_half_precision_of_huge_and_tiny_rows_stays_finite() -> None:
    student = torch.stack([torch.full((8,), 6e4), torch.full((8,), 1e-7), torch.zeros(8)]).half().requires_grad_()
    loss = embedding_distillation(student, torch.ones(3, 8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 / 3, abs=1e-4)  # the zero row alone is at a distance of 1
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = drawn(5).requires_grad_(), drawn(6).requires_grad_()
    embedding_distillation(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("teacher", [torch.zeros(5, 9), torch.zeros(4, 7), torch.zeros(0, 7)])
def test_embeddings_that_do_not_belong_together_are_refused(teacher: torch.Tensor) -> None:
    student = drawn(0) if len(teacher) else torch.zeros(0, 7)
    with pytest.raises(TrainingError, match="project the teacher's"):
        embedding_distillation(student, teacher)
