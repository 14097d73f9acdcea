"""Distillation from teacher scores against its definitions, sentence-transformers' loss, and at its limits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

from drama_models.errors import TrainingError
from tests.training.batches import B, N, embeddings, labels
from tests.training.objectives import plain
from training.objectives import (
    Contrastive,
    FalseNegatives,
    Labels,
    Listwise,
    Multilayer,
    Objective,
    OrderedDistillation,
    RerankerDistillation,
    WeightedSum,
)
from training.recipe import ObjectiveRecipe


def scored(rows: list[list[float]], *, absent: tuple[int, ...] = ()) -> Labels:
    """The usual labels with other teacher scores."""
    return dataclasses.replace(labels(absent=absent), scores=torch.tensor(rows, dtype=torch.float64))


def own_lists(query: torch.Tensor, document: torch.Tensor, temperature: float) -> list[list[float]]:
    """Each query's cosines with its own documents over the temperature."""
    return [
        [plain.score(query[number], document[number * N + column]) / temperature for column in range(N)]
        for number in range(B)
    ]


def test_listwise_is_the_divergence_of_two_softmaxes() -> None:
    (query, document), known = embeddings(), labels()
    expected = [
        plain.divergence(plain.softmax([score / 0.3 for score in teacher]), plain.softmax(student))
        for teacher, student in zip(known.scores.tolist(), own_lists(query, document, 0.05), strict=True)
    ]
    assert Listwise()(query, document, known).item() == pytest.approx(sum(expected) / B)


def test_listwise_with_one_temperature_is_the_stock_loss() -> None:
    (query, document), known = embeddings(), labels()
    columns = [query, *document.view(B, N, -1).unbind(1)]
    # a model is only asked for embeddings, and these are given; the stock loss has one temperature for both sides
    stock = DistillKLDivLoss(torch.nn.Identity(), temperature=2.0).compute_loss_from_embeddings(columns, known.scores)  # type: ignore[arg-type]
    ours = Listwise(student_temperature=2.0, teacher_temperature=2.0, similarity="dot")(query, document, known)
    torch.testing.assert_close(ours * 2.0**2, stock)


def test_reranker_distillation_is_the_cross_entropy_with_scores_as_they_are() -> None:
    (query, document), known = embeddings(), labels()
    expected = [
        -sum(t * math.log(s) for t, s in zip(plain.softmax(teacher), plain.softmax(student), strict=True))
        for teacher, student in zip(known.scores.tolist(), own_lists(query, document, 0.1), strict=True)
    ]
    assert RerankerDistillation(temperature=0.1)(query, document, known).item() == pytest.approx(sum(expected) / B)


def test_cross_entropy_and_divergence_have_the_same_gradient() -> None:
    known, found = labels(), []
    for objective in (
        RerankerDistillation(temperature=0.1),
        Listwise(student_temperature=0.1, teacher_temperature=1.0),
    ):
        query, document = (x.requires_grad_() for x in embeddings())
        objective(query, document, known).backward()
        found.append((query.grad, document.grad))
    torch.testing.assert_close(found[0], found[1])


def test_ordered_distillation_takes_earlier_own_documents_away() -> None:
    (query, document), known = embeddings(), labels()
    expected = 0.0
    for column in range(N):
        for number in range(B):
            gone = range(number * N, number * N + column)
            rows = [row for row in range(B * N) if row not in gone]
            weights = {row: math.exp(plain.score(query[number], document[row]) / 0.1) for row in rows}
            share = weights[number * N + column] / sum(weights.values())
            expected -= plain.softmax(known.scores[number].tolist())[column] * math.log(share) / B
    assert OrderedDistillation(temperature=0.1)(query, document, known).item() == pytest.approx(expected)


def test_specialisation_is_divergence_plus_a_tenth_of_filtered_contrast() -> None:
    (query, document), known = embeddings(), labels(ids="abcadedbefgh")
    mask = FalseNegatives(share=0.6).mask(known)
    counted = [[row for row in range(B * N) if not mask[number, row]] for number in range(B)]
    contrast = plain.info_nce(query, document, known.positive.tolist(), counted, 0.01)
    expected = Listwise()(query, document, known).item() + 0.1 * contrast
    assert ObjectiveRecipe.specialisation().build()(query, document, known).item() == pytest.approx(expected)


@pytest.mark.parametrize("objective", [Listwise(), RerankerDistillation(), OrderedDistillation()])
def test_absent_documents_are_in_no_list(objective: Listwise | RerankerDistillation | OrderedDistillation) -> None:
    query, document = embeddings()
    known = labels(absent=(2, 5, 8, 11))
    two = document.view(B, N, -1)[:, :2].flatten(0, 1)
    fewer = Labels.of(
        positives=[0, 2, 4, 7], absent=[False] * 2 * B, scores=known.scores[:, :2].tolist(), in_batch_negatives=True
    )
    torch.testing.assert_close(objective(query, document, known), objective(query, two, fewer))


def test_lists_without_scores_are_skipped_only_where_that_was_said() -> None:
    query, document = (x.requires_grad_() for x in embeddings())
    none = [math.nan] * N
    known = scored([[0.1, 0.9, 0.3], none, [0.5, math.nan, math.nan], [0.2, math.nan, 0.8]])
    found = Listwise(unscored="skip")(query, document, known)
    lists = own_lists(query.detach(), document.detach(), 0.05)
    first = plain.divergence(plain.softmax([0.1 / 0.3, 0.9 / 0.3, 0.3 / 0.3]), plain.softmax(lists[0]))
    last = plain.divergence(plain.softmax([0.2 / 0.3, 0.8 / 0.3]), plain.softmax([lists[3][0], lists[3][2]]))
    assert found.item() == pytest.approx((first + last) / 2)
    found.backward()
    assert query.grad is not None
    assert query.grad.abs().sum(1).gt(0).tolist() == [True, False, False, True]
    assert torch.isfinite(query.grad).all()
    for objective in (Listwise(), OrderedDistillation(), ObjectiveRecipe.specialisation().build()):
        with pytest.raises(TrainingError, match="query 1 of the batch has teacher scores for 0 of its 3 documents"):
            objective(query, document, known)


def test_a_batch_without_any_scores_leaves_only_the_contrast() -> None:
    query, document = (x.requires_grad_() for x in embeddings())
    known = scored([[math.nan] * N] * B)
    icl = WeightedSum(objectives=(Contrastive(), RerankerDistillation()))
    assert torch.equal(icl(query, document, known), Contrastive()(query, document, known))
    RerankerDistillation()(query, document, known).backward()
    assert document.grad is not None
    assert document.grad.abs().max() == 0


def test_a_list_of_one_document_is_refused() -> None:
    query, document = embeddings()
    alone = Labels.of(positives=[0, 1], absent=[False] * 2, scores=[[1.0], [2.0]])
    for objective in (
        Listwise(),
        Listwise(unscored="skip"),
        RerankerDistillation(),
        ObjectiveRecipe.specialisation().build(),
    ):
        with pytest.raises(TrainingError, match="a list of one teaches nothing"):
            objective(query[:2], document[:2], alone)
    unscored = Labels.of(positives=[0, 1], absent=[False] * 2, scores=[[math.nan]] * 2)
    assert RerankerDistillation()(query[:2], document[:2], unscored).item() == 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("agrees", [True, False], ids=["agreeing", "opposed"])
def test_extreme_lists_stay_finite_in_bfloat16(size: float, agrees: bool) -> None:
    query = (torch.eye(B, 8) * size).to(torch.bfloat16).requires_grad_()
    signs = torch.tensor([1.0, -1.0, 0.0] if agrees else [-1.0, 1.0, 0.0]).repeat(B)[:, None]
    document = (torch.eye(B, 8).repeat_interleave(N, 0) * signs * size).to(torch.bfloat16).requires_grad_()
    known = scored([[1e4, -1e4, 0.0]] * B)  # softmax 1, 0, 0
    for objective, opposed in (
        (Listwise(student_temperature=0.001, teacher_temperature=0.001), 2000.0),
        (RerankerDistillation(temperature=0.001), 2000.0),
        (OrderedDistillation(temperature=0.001), 2000.0),
    ):
        loss = objective(query, document, known)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.0 if agrees else opposed, abs=0.01)
        for gradient in torch.autograd.grad(loss, (query, document)):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "objective",
    [
        Listwise(student_temperature=0.5),
        RerankerDistillation(temperature=0.5),
        OrderedDistillation(temperature=0.5),
        WeightedSum(objectives=(Listwise(), Contrastive(temperature=0.5)), weights=(1.0, 0.1)),
    ],
)
def test_gradients_match_finite_differences(objective: Objective) -> None:
    query, document = (x.requires_grad_() for x in embeddings(dim=4))
    known = labels(absent=(2,))
    assert torch.autograd.gradcheck(lambda q, d: objective(q, d, known), (query, document))


def test_settings_without_sense_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"student_temperature=0 must be positive; 0\.05"):
        Listwise(student_temperature=0)
    with pytest.raises(ValueError, match=r"teacher_temperature=-1 must be positive; 0\.3"):
        Listwise(teacher_temperature=-1)
    with pytest.raises(ValueError, match="use refuse, or skip"):
        RerankerDistillation(unscored="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name at least one"):
        WeightedSum(objectives=())
    with pytest.raises(ValueError, match="not all zero"):
        WeightedSum(objectives=(Contrastive(),), weights=(0.0,))


def test_a_rerankers_layers_are_taught_by_its_last_or_by_a_teacher() -> None:
    known = labels(absent=(2,))
    scores = torch.randn(3, B, N, dtype=torch.float64, requires_grad=True)
    counted = [[column for column in range(N) if number * N + column != 2] for number in range(B)]

    def chances(table: torch.Tensor, number: int) -> list[float]:
        return plain.softmax([float(table[number, column]) for column in counted[number]])

    layers = list(scores.detach())
    places = [counted[number].index(column) for number, column in enumerate(known.positive_column.tolist())]
    contrast = -sum(math.log(chances(layer, number)[places[number]]) for layer in layers for number in range(B)) / B
    for teacher, table, taught in (("last layer", layers[-1], layers[:-1]), ("scores", known.scores, layers)):
        distilled = -sum(
            t * math.log(s)
            for layer in taught
            for number in range(B)
            for t, s in zip(chances(table, number), chances(layer, number), strict=True)
        )
        found = Multilayer(teacher=teacher)(scores, known)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(contrast + distilled / B)
    found.backward()
    assert scores.grad is not None
    assert scores.grad[:, 0, 2].abs().max() == 0
    with pytest.raises(TrainingError, match=r"one \(queries, documents\) table for each layer"):
        Multilayer()(scores[0], known)
    with pytest.raises(ValueError, match="use 'last layer', or 'scores'"):
        Multilayer(teacher="first layer")  # type: ignore[arg-type]


def test_a_rerankers_extreme_scores_stay_finite_in_bfloat16() -> None:
    scores = torch.tensor([[[3e4, -3e4, 0.0]] * B] * 2, dtype=torch.bfloat16, requires_grad=True)
    known = dataclasses.replace(labels(), positive=torch.arange(B) * N + 1)
    loss = Multilayer()(scores, known)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * 6e4, rel=0.01)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
