"""InfoNCE against its definition, one exponential at a time, against sentence-transformers' loss, and at its limits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

from drama_models.errors import DimensionError, TrainingError
from tests.training.batches import B, D, N, embeddings, labels
from tests.training.objectives import plain
from training.objectives import Contrastive, FalseNegatives, Labels, Matryoshka, contrastive

if TYPE_CHECKING:
    from training.objectives.similarity import Similarity

EVERYTHING = [range(B * N)] * B
OWN = [range(number * N, number * N + N) for number in range(B)]


@pytest.mark.parametrize(("temperature", "dot"), [(1.0, False), (0.1, False), (0.02, False), (1.0, True)])
def test_info_nce_matches_its_definition(temperature: float, dot: bool) -> None:
    query, document = embeddings()
    objective = Contrastive(temperature=temperature, similarity="dot" if dot else "cosine")
    for in_batch, counted in ((True, EVERYTHING), (False, OWN)):
        known = labels(in_batch_negatives=in_batch)
        expected = plain.info_nce(query, document, known.positive.tolist(), counted, temperature, dot=dot)
        assert objective(query, document, known).item() == pytest.approx(expected, rel=1e-9)


def test_absent_documents_count_for_nobody() -> None:
    query, document = embeddings()
    document[[2, 7]] = 100.0 * query[:2]  # the best of all, were they there
    known = labels(absent=(2, 7))
    present = [row for row in range(B * N) if row not in (2, 7)]
    expected = plain.info_nce(query, document, known.positive.tolist(), [present] * B, 0.1)
    assert Contrastive(temperature=0.1)(query, document, known).item() == pytest.approx(expected)


def test_a_query_whose_negatives_are_all_absent_has_no_loss_of_its_own() -> None:
    query, document = embeddings()
    document.requires_grad_()
    known = labels(in_batch_negatives=False, absent=(1, 2, 4, 5, 7, 8, 9, 11))
    loss = Contrastive()(query, document, known)
    loss.backward()
    assert loss.item() == 0
    assert document.grad is not None
    assert document.grad.abs().max().item() == 0


def test_false_negatives_leave_wherever_they_stand() -> None:
    query, document = embeddings()
    letters = "abcadedbefgh"  # the positives are a, a, d and g
    scores = [[1.0, 0.7, 0.6], [0.5, 0.1, 0.4], [0.0, 0.0, 0.2], [0.9, 1.0, math.nan]]
    known = dataclasses.replace(labels(ids=letters), scores=torch.tensor(scores, dtype=torch.float64))
    right = ["ab", "ae", "de", "fg"]  # c has exactly 0.6 of a's score and stays a negative
    found = FalseNegatives(share=0.6).mask(known)
    for number, positive in enumerate(known.positive.tolist()):
        wanted = [letters[row] in right[number] and row != positive for row in range(B * N)]
        assert found[number].tolist() == wanted, f"query {number}"
    counted = [[row for row in range(B * N) if not found[number, row]] for number in range(B)]
    expected = plain.info_nce(query, document, known.positive.tolist(), counted, 0.1)
    objective = Contrastive(temperature=0.1, false_negatives=FalseNegatives(share=0.6))
    assert objective(query, document, known).item() == pytest.approx(expected)


def test_scores_that_were_never_rounded_are_compared_as_they_are() -> None:
    """0.6000001 is above 0.6 of 1; in float32 it could not be told from 0.6, which is not."""
    scores = torch.tensor([[1.0, 0.6000001], [1.0, 0.6], [1.0, torch.tensor(0.6).item()]], dtype=torch.float64)
    near = Labels(positive=torch.arange(3) * 2, absent=torch.zeros(6, dtype=torch.bool), scores=scores)
    found = FalseNegatives(share=0.6).mask(near)
    assert [bool(found[row, 2 * row + 1]) for row in range(3)] == [True, False, False]


@pytest.mark.parametrize("kept_in", [torch.float32, torch.float64])
def test_exactly_the_share_stays_a_negative_in_any_precision(kept_in: torch.dtype) -> None:
    best = torch.arange(1, 101, dtype=torch.float64) / 100
    scores = torch.stack([best, best * 6 / 10, best * 6 / 10 + 1e-4], 1).to(kept_in)
    found = FalseNegatives(share=0.6).mask(
        Labels(positive=torch.arange(100) * 3, absent=torch.zeros(300, dtype=torch.bool), scores=scores)
    )
    assert found.nonzero().tolist() == [[number, 3 * number + 2] for number in range(100)]


def test_a_margin_judges_scores_below_zero() -> None:
    known = dataclasses.replace(
        labels(), scores=torch.tensor([[-1.0, -2.5, -1.5], [3.0, 2.0, 1.0], [0.0, 0.5, -9.0], [-4.0, -4.0, -6.0]])
    )
    found = FalseNegatives(margin=1.0).mask(known)
    own = torch.stack([found[number, number * N : number * N + N] for number in range(B)])
    # strictly above the positive's score less 1: exactly 1 below stays a negative
    assert own.tolist() == [[False, False, True], [False, False, False], [False, True, False], [True, False, False]]
    assert found.sum() == own.sum()


def test_many_queries_are_scored_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    known = labels(in_batch_negatives=False, ids="abcadedbefgh")
    objective = Contrastive(temperature=0.1, false_negatives=FalseNegatives(share=0.6))
    found = []
    for at_once in (1 << 25, 3 * B * N, 1):
        monkeypatch.setattr(contrastive, "SCORES_AT_ONCE", at_once)
        query, document = (x.requires_grad_() for x in embeddings())
        loss = objective(query, document, known)
        loss.backward()
        found.append((loss.detach(), query.grad, document.grad))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradients_match_finite_differences(similarity: Similarity) -> None:
    query, document = (x.requires_grad_() for x in embeddings(dim=5))
    known = labels(absent=(2,), ids="abcadedbefgh")
    objective = Contrastive(temperature=0.5, similarity=similarity, false_negatives=FalseNegatives(share=0.6))
    assert torch.autograd.gradcheck(lambda q, d: objective(q, d, known), (query, document))


def test_equal_documents_give_the_logarithm_of_their_number() -> None:
    query, document = torch.ones(B, D, dtype=torch.bfloat16), torch.ones(B * N, D, dtype=torch.bfloat16)
    loss = Contrastive(temperature=0.001)(query, document, labels())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(torch.log(torch.tensor(float(B * N))).item(), rel=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
@pytest.mark.parametrize("side", [1.0, -1.0], ids=["right", "wrong"])
def test_extreme_cosines_stay_finite_in_bfloat16(size: float, side: float) -> None:
    query = (torch.eye(B, 8) * size).to(torch.bfloat16).requires_grad_()
    signs = torch.tensor([side, -side, 0.0]).repeat(B)[:, None]
    document = (torch.eye(B, 8).repeat_interleave(N, 0) * signs * size).to(torch.bfloat16).requires_grad_()
    known = dataclasses.replace(labels(), positive=torch.arange(B) * N)
    loss = Contrastive(temperature=0.001)(query, document, known)
    loss.backward()
    assert loss.item() == pytest.approx(0.0 if side > 0 else 2000.0, abs=0.01)
    for side_of in (query, document):
        assert side_of.grad is not None
        assert torch.isfinite(side_of.grad).all()


def test_dot_products_beyond_half_precision_stay_finite() -> None:
    query = torch.full((B, 768), 3e3, dtype=torch.float16).requires_grad_()  # products of 7e9: past float16's 65504
    document = torch.full((B * N, 768), 3e3, dtype=torch.float16)
    document[labels().positive] = -3e3
    with torch.autocast("cpu", dtype=torch.float16):
        loss = Contrastive(temperature=1.0, similarity="dot")(query, document, labels())
    assert loss.item() == pytest.approx(2 * 768 * 9e6, rel=1e-3)
    loss.backward()
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


def test_autocast_does_not_round_the_scores() -> None:
    query, document = (x.float() for x in embeddings(dim=300))
    objective = Contrastive(temperature=0.01)
    exact = objective(query, document, labels())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(query, document, labels()), exact)


def test_matryoshka_is_the_sum_over_prefixes_scaled_anew() -> None:
    query, document = embeddings()
    known, dims, weights = labels(), (16, 6, 3), (1.0, 0.5, 2.0)
    expected = sum(
        weight * plain.info_nce(query[:, :dim], document[:, :dim], known.positive.tolist(), EVERYTHING, 0.2)
        for dim, weight in zip(dims, weights, strict=True)
    )
    objective = Matryoshka(objective=Contrastive(temperature=0.2), dims=dims, weights=weights)
    assert objective(query, document, known).item() == pytest.approx(expected)
    unit_query, unit_document = (F.normalize(x, dim=-1) for x in (query, document))
    torch.testing.assert_close(objective(unit_query, unit_document, known), objective(query, document, known))


def test_the_trainers_loss_is_the_same_function(retriever_folder: Path) -> None:
    model = SentenceTransformer(str(retriever_folder), device="cpu")
    texts = {
        "query": ["Query: join tables", "Query: sort rows"],
        "positive": ["Put two tables together.", "Bring the rows into order."],
        "negative": ["Draw points.", "Compute a digest of the bytes."],
    }
    features = [model.preprocess(column) for column in texts.values()]
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20.0), [48, 16], [1.0, 0.5])
    loss = theirs(features, None)
    query, *columns = (model(dict(column))["sentence_embedding"] for column in features)
    document = torch.stack(columns, 1).flatten(0, 1)  # ours wants each query's documents in turn
    known = Labels.of(positives=[0, 2], absent=[False] * 4, scores=[[0.0] * 2] * 2)
    ours = Contrastive(temperature=0.05)
    expected = Matryoshka(objective=ours, dims=(48, 16), weights=(1.0, 0.5))(query, document, known)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    stock = MultipleNegativesRankingLoss(model, scale=20.0).compute_loss_from_embeddings(
        [query, *columns], torch.empty(0)
    )
    torch.testing.assert_close(stock, ours(query, document, known))


def test_settings_without_sense_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be positive; 0\.02"):
        Contrastive(temperature=0.0)
    with pytest.raises(ValueError, match=r"temperature=nan must be positive; 1\.0"):
        Contrastive(temperature=math.nan, similarity="dot")
    with pytest.raises(ValueError, match="use cosine, or dot"):
        Contrastive(similarity="euclidean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set one of share"):
        FalseNegatives()
    with pytest.raises(ValueError, match="share=0 must be positive"):
        FalseNegatives(share=0)
    with pytest.raises(ValueError, match="margin=-1 must not be negative"):
        FalseNegatives(margin=-1)
    with pytest.raises(ValueError, match="different positive sizes"):
        Matryoshka(objective=Contrastive(), dims=(4, 4))
    with pytest.raises(ValueError, match="weights has 1 values for 2 dims"):
        Matryoshka(objective=Contrastive(), dims=(4, 2), weights=(1.0,))


def test_embeddings_that_do_not_fit_are_refused() -> None:
    query, document = embeddings()
    with pytest.raises(TrainingError, match=r"pass \(4, D\) and \(12, D\)"):
        Contrastive()(query, document[:-1], labels())
    with pytest.raises(TrainingError, match="queries have 16 dimensions and documents 8"):
        Contrastive()(query, document[:, :8], labels())
    with pytest.raises(DimensionError, match="beyond the 16 dimensions"):
        Matryoshka(objective=Contrastive(), dims=(32, 16))(query, document, labels())
