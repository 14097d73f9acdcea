"""Objectives against slow plain expressions and against sentence-transformers' own losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from training.objectives import info_nce, matryoshka_info_nce, trainer_loss

B, N, D = 4, 3, 12


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(B, D, generator=generator, dtype=torch.float64)
    document = torch.randn(B * N, D, generator=generator, dtype=torch.float64)
    return query, document, torch.arange(B) * N


def plain(query: torch.Tensor, document: torch.Tensor, *, temperature: float, own_only: bool = False) -> float:
    """The definition, one exponential at a time."""
    total = 0.0
    for number, q in enumerate(query):
        cosines = [float(q @ d / q.norm() / d.norm()) / temperature for d in document]
        allowed = range(number * N, number * N + N) if own_only else range(len(document))
        total -= math.log(math.exp(cosines[number * N]) / sum(math.exp(cosines[column]) for column in allowed))
    return total / len(query)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_info_nce_matches_its_definition(temperature: float) -> None:
    query, document, positive = batch()
    found = info_nce(query, document, positive, temperature=temperature)
    assert found.item() == pytest.approx(plain(query, document, temperature=temperature))
    own = info_nce(query, document, positive, temperature=temperature, in_batch_negatives=False)
    assert own.item() == pytest.approx(plain(query, document, temperature=temperature, own_only=True))


def test_absent_documents_count_for_nobody() -> None:
    query, document, positive = batch()
    absent = torch.zeros(B * N, dtype=torch.bool)
    absent[[2, 7]] = True
    found = info_nce(query, document, positive, temperature=0.1, absent=absent)
    kept = [row for row in range(B * N) if not absent[row]]
    moved = torch.tensor([kept.index(int(row)) for row in positive])
    expected = info_nce(query, document[kept], moved, temperature=0.1)
    torch.testing.assert_close(found, expected)


def test_matryoshka_is_the_sum_over_prefixes_scaled_anew() -> None:
    query, document, positive = batch()
    dims, weights = (12, 6, 3), (1.0, 0.5, 2.0)
    expected = sum(
        weight * plain(query[:, :dim], document[:, :dim], temperature=0.2)
        for dim, weight in zip(dims, weights, strict=True)
    )
    found = matryoshka_info_nce(query, document, positive, dims=dims, weights=weights, temperature=0.2)
    assert found.item() == pytest.approx(expected)


def test_extreme_scores_stay_finite_in_bfloat16() -> None:
    query = torch.eye(4, dtype=torch.bfloat16) * 1e4
    document = torch.cat([query, -query]).requires_grad_()
    loss = info_nce(query, document, torch.tensor([4, 5, 6, 7]), temperature=0.001)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2000, rel=0.01)
    assert document.grad is not None
    assert torch.isfinite(document.grad).all()


def test_temperature_must_be_positive() -> None:
    query, document, positive = batch()
    with pytest.raises(ValueError, match=r"must be positive; 0\.02"):
        info_nce(query, document, positive, temperature=0.0)


def test_the_trainers_loss_is_the_same_function(retriever_folder: Path) -> None:
    model = SentenceTransformer(str(retriever_folder), device="cpu")
    texts = {
        "query": ["Query: join tables", "Query: sort rows"],
        "positive": ["Put two tables together.", "Bring the rows into order."],
        "negative": ["Draw points.", "Compute a digest of the bytes."],
    }
    features = [model.preprocess(column) for column in texts.values()]
    loss = trainer_loss(model, dims=(48, 16), weights=(1.0, 0.5), temperature=0.05)(features, None)
    vectors = [model(dict(column))["sentence_embedding"] for column in features]
    # ours wants each query's documents in turn, theirs column by column: the sum over all documents is the same
    document = torch.cat(vectors[1:])
    positive = torch.arange(2)
    expected = matryoshka_info_nce(vectors[0], document, positive, dims=(48, 16), weights=(1.0, 0.5), temperature=0.05)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    plain_loss = MultipleNegativesRankingLoss(model, scale=20.0).compute_loss_from_embeddings(vectors, torch.empty(0))
    torch.testing.assert_close(plain_loss, info_nce(vectors[0], document, positive, temperature=0.05))
