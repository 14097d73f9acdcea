"""Cached gradients must be the gradients: the oracle is the same loss with the whole batch encoded once, dropout on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tests.training.batches import B, N, labels, objectives
from training.cached_gradients import RandomState, cached_embeddings, cached_loss
from training.objectives import Contrastive, Labels

if TYPE_CHECKING:
    from training.objectives import Objective

LENGTH, VOCABULARY = 6, 40


def tiny_bert() -> BertModel:
    """A BERT with dropout; weights are large enough for it to matter."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
    )
    return BertModel(config, add_pooling_layer=False).train()


def texts(rows: int, seed: int) -> Tensor:
    """Token ids, (rows, LENGTH)."""
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


class Encoder:
    """Mean of the last hidden states, and how often that was asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, 0

    def __call__(self, ids: Tensor) -> Tensor:
        self.calls += 1
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.mean(1)


def uncached(encode: Encoder, objective: Objective) -> Tensor:
    """The same chunks, in the same order and so with the same dropout, all kept until the way back."""
    query, document = (torch.cat([encode(chunk) for chunk in kind]) for kind in (QUERIES, DOCUMENTS))
    return objective(query, document, labels())


QUERIES, DOCUMENTS = texts(B, 1).split([3, 1]), texts(B * N, 2).split(5)


@pytest.mark.parametrize("name", objectives())
def test_gradients_equal_the_uncached_ones_with_dropout_on(name: str) -> None:
    encode, objective = Encoder(tiny_bert()), objectives()[name]
    torch.manual_seed(7)
    expected = uncached(encode, objective)
    expected.backward()
    wanted, after = gradients(encode.model), torch.rand(1)
    torch.manual_seed(7)
    loss = cached_loss(encode, QUERIES, DOCUMENTS, lambda query, document: objective(query, document, labels()))
    loss.backward()
    assert torch.equal(loss, expected)
    assert encode.calls == 3 * len(QUERIES + DOCUMENTS)
    for found, want in zip(gradients(encode.model), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))
    assert torch.equal(torch.rand(1), after), "the way back must not move the random generator"


def test_the_stock_cached_loss_has_the_same_gradients(retriever_folder: Path) -> None:
    model = SentenceTransformer(str(retriever_folder), device="cpu")
    columns = [["join tables", "sort rows", "draw points"], ["Put two together.", "Ascending order.", "A line."]]
    stock = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=2)
    expected = stock([model.preprocess(column) for column in columns], None)
    expected.backward()
    wanted = gradients(model)
    known = Labels.of(positives=[0, 1, 2], absent=[False] * 3, scores=[[0.0]] * 3)
    queries, documents = ([column[:2], column[2:]] for column in columns)
    loss = cached_loss(
        lambda texts: model(model.preprocess(texts))["sentence_embedding"],
        queries,
        documents,
        lambda query, document: Contrastive(temperature=0.05)(query, document, known),
    )
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for found, want in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_dropout_matters_to_the_test_above() -> None:
    encode, objective = Encoder(tiny_bert()), objectives()["contrastive"]
    losses = [uncached(encode, objective).item() for _ in range(2)]
    assert abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize("within", [True, False], ids=["backward inside autocast", "backward after it"])
def test_autocast_of_the_first_pass_holds_on_the_way_back(within: bool) -> None:
    encode, objective = Encoder(tiny_bert()), objectives()["contrastive"]
    found = []
    for cached in (False, True):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if cached:
                loss = cached_loss(
                    encode, QUERIES, DOCUMENTS, lambda query, document: objective(query, document, labels())
                )
            else:
                loss = uncached(encode, objective)
            assert loss.dtype == torch.float32
            if within:
                loss.backward()
        if not within:
            loss.backward()
        found.append(gradients(encode.model))
    assert len(found[0]) == len(found[1])
    for plain, cached_one in zip(*found, strict=True):
        # bf16 products are summed in another order: chunk by chunk instead of all at once
        torch.testing.assert_close(cached_one, plain, rtol=0.02, atol=0.02 * float(plain.abs().max()))


def test_scaling_and_accumulation_act_as_on_any_loss() -> None:
    encode, objective = Encoder(tiny_bert().eval()), objectives()["contrastive"]
    uncached(encode, objective).backward()
    once = gradients(encode.model)
    for _ in range(2):
        loss = cached_loss(encode, QUERIES, DOCUMENTS, lambda query, document: objective(query, document, labels()))
        (loss * 1024 / 2).backward()
    for found, want in zip(gradients(encode.model), once, strict=True):
        torch.testing.assert_close(found / 1024, want, rtol=1e-5, atol=1e-6)


def test_nothing_is_replayed_when_nothing_is_to_be_learned() -> None:
    encode = Encoder(tiny_bert())
    with torch.no_grad():
        query, document = cached_embeddings(encode, QUERIES, DOCUMENTS)
    assert not query.requires_grad
    assert document.shape == (B * N, 16)
    assert encode.calls == len(QUERIES + DOCUMENTS)


def test_a_frozen_encoder_is_left_as_it_is() -> None:
    trained, frozen = Encoder(tiny_bert()), Encoder(tiny_bert().requires_grad_(False))
    queries, documents = ([(kind, chunk) for chunk in chunks] for kind, chunks in (("q", QUERIES), ("d", DOCUMENTS)))

    def encode(chunk: tuple[str, Tensor]) -> Tensor:
        return (trained if chunk[0] == "q" else frozen)(chunk[1])

    cached_loss(encode, queries, documents, lambda query, document: (query @ document.T).square().mean()).backward()
    assert all(parameter.grad is None for parameter in frozen.model.parameters())
    assert len(gradients(trained.model)) == len(list(trained.model.parameters()))


def test_random_state_gives_the_same_draws_and_leaves_no_trace() -> None:
    state = RandomState()
    first = torch.rand(3)
    second = torch.rand(3)
    with state.restored():
        torch.testing.assert_close(torch.rand(3), first)
    with state.restored(), nullcontext():
        torch.testing.assert_close(torch.rand(6), torch.cat([first, second]))


def test_a_batch_without_chunks_is_refused() -> None:
    with pytest.raises(ValueError, match="0 chunks of queries and 3 of documents"):
        cached_loss(Encoder(tiny_bert()), [], DOCUMENTS, lambda query, document: query.sum() + document.sum())
