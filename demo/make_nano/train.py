"""Training in two stages: the token table as a bag of tokens, then all weights with the transformer layers.

Both stages minimise the same sum: contrastive in both directions over pairs cut from the documentation, and embedding
distillation on short texts. A bag of tokens costs a lookup and a mean, so the first stage sees a hundred times as many
texts in a minute; it is computed as what it is, the Llama without
layers (`bag_states`), whose layers add almost nothing at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from demo.make_nano.prepare import EPS
from training.encoders import embed
from training.objectives import Contrastive, Labels
from training.objectives.embedding_distillation import embedding_distillation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from demo.make_nano.recipe import NanoRecipe

# B = pairs of a step, n = texts with a teacher embedding, D = embedding size, V = entries of the tokenizer
TABLE_SLOWER = 5  # in the second stage, by how much the table's learning rate is below the layers'


@dataclass(frozen=True)
class Data:
    """Everything tokenised, without ends."""

    queries: list[NDArray[np.int64]]
    documents: list[NDArray[np.int64]]
    pairs_of_document: list[list[int]]
    """Rows of the two above that share a document."""
    taught: list[NDArray[np.int64]]
    teacher: Tensor
    """Their embeddings, centred and projected to our size, (n, D)."""


@dataclass(frozen=True)
class Step:
    """What one step sees, as token ids."""

    queries: list[Tensor]
    documents: list[Tensor]
    taught: list[Tensor]
    teacher: Tensor


def steps_of(data: Data, recipe: NanoRecipe, *, count: int, batch_size: int, document_tokens: int) -> Iterator[Step]:
    """Batches as a function of the seed: distinct documents, one of its pairs each, and as many taught texts.

    Of the tokens that a document shares with its query, most are taken away: what is left must do by its meaning.
    """
    generator = np.random.default_rng(recipe.seed)
    for _ in range(count):
        rows = [
            generator.choice(data.pairs_of_document[number])
            for number in generator.choice(len(data.pairs_of_document), batch_size, replace=False)
        ]
        queries = [data.queries[row] for row in rows]
        documents = [
            drop_shared(data.documents[row][:document_tokens], query, recipe.word_dropout, generator)
            for row, query in zip(rows, queries, strict=True)
        ]
        taught = generator.choice(len(data.taught), batch_size, replace=False)
        yield Step(
            [torch.from_numpy(row) for row in queries],
            [torch.from_numpy(row) for row in documents],
            [torch.from_numpy(data.taught[number]) for number in taught],
            data.teacher[torch.from_numpy(taught)],
        )


def drop_shared(
    document: NDArray[np.int64], query: NDArray[np.int64], chance: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The document without some of the tokens that the query has too; itself where nothing would be left."""
    kept = document[~(np.isin(document, query) & (generator.random(len(document)) < chance))]
    return kept if len(kept) else document


def loss_of(step: Step, embed_texts: Callable[[Sequence[Tensor]], Tensor], recipe: NanoRecipe) -> Tensor:
    """Contrastive in both directions, and embedding distillation."""
    query, document = embed_texts(step.queries), embed_texts(step.documents)  # (B, D) each
    B = len(query)
    labels = Labels(
        positive=torch.arange(B), absent=torch.zeros(B, dtype=torch.bool), scores=torch.full((B, 1), torch.nan)
    )
    contrastive = Contrastive(temperature=recipe.temperature)
    both_ways = (contrastive(query, document, labels) + contrastive(document, query, labels)) / 2
    distilled = embedding_distillation(embed_texts(step.taught), step.teacher)
    return both_ways + recipe.distillation_weight * distilled


def bag_states(table: Tensor) -> Tensor:
    """Last hidden state of each token in a Llama without layers: the RMSNorm of its embedding, (V, D)."""
    return table * torch.rsqrt(table.square().mean(dim=1, keepdim=True) + EPS)


def embed_bag(table: Tensor, texts: Sequence[Tensor]) -> Tensor:
    """Mean state of each text, (n, D)."""
    lengths = torch.tensor([0, *(len(text) for text in texts[:-1])])
    return F.embedding_bag(torch.cat(list(texts)), bag_states(table), lengths.cumsum(0), mode="mean")


def train_table(table: Tensor, data: Data, recipe: NanoRecipe, measure: Callable[[int, float, Tensor], None]) -> Tensor:
    """First stage.

    Args:
        table: token embeddings to start from, (V, D).
        data: tokenised texts.
        recipe: steps, rates and weights.
        measure: called every `evaluate_every` steps and at the end with step, loss and table.

    Returns:
        The trained table, (V, D).
    """
    weights = torch.nn.Parameter(table.clone())
    optimiser = torch.optim.Adam([weights], lr=recipe.table_learning_rate)
    batches = steps_of(data, recipe, count=recipe.table_steps, batch_size=recipe.batch_size, document_tokens=128)

    def embed_texts(texts: Sequence[Tensor]) -> Tensor:
        return embed_bag(weights, texts)

    for number, loss in _optimise(batches, embed_texts, recipe, optimiser, recipe.table_steps):
        if number % recipe.evaluate_every == 0 or number == recipe.table_steps:
            measure(number, loss, weights.detach())
    return weights.detach()


def train_layers(
    model: SentenceTransformer, data: Data, recipe: NanoRecipe, measure: Callable[[int, float], None]
) -> None:
    """Second stage, on the model in place; arguments as of `train_table`."""
    named = dict(model.named_parameters())
    table = [value for name, value in named.items() if "embed_tokens" in name]
    rest = [value for name, value in named.items() if "embed_tokens" not in name]
    rate = recipe.layer_learning_rate
    optimiser = torch.optim.Adam([{"params": rest, "lr": rate}, {"params": table, "lr": rate / TABLE_SLOWER}])
    config = cast(Any, model[0]).auto_model.config
    first, last = torch.tensor([config.bos_token_id]), torch.tensor([config.eos_token_id])
    batches = steps_of(
        data,
        recipe,
        count=recipe.layer_steps,
        batch_size=recipe.layer_batch_size,
        document_tokens=recipe.layer_document_tokens,
    )

    def embed_texts(texts: Sequence[Tensor]) -> Tensor:
        return embed(model, [torch.cat([first, text, last]) for text in texts], "document")

    for number, loss in _optimise(batches, embed_texts, recipe, optimiser, recipe.layer_steps):
        if number % recipe.evaluate_every == 0 or number == recipe.layer_steps:
            measure(number, loss)


def _optimise(
    batches: Iterator[Step],
    embed_texts: Callable[[Sequence[Tensor]], Tensor],
    recipe: NanoRecipe,
    optimiser: torch.optim.Optimizer,
    total: int,
) -> Iterator[tuple[int, float]]:
    """Number and loss of each step, its rate falling linearly to zero."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda number: 1 - number / total)
    for number, step in enumerate(batches, start=1):
        loss = loss_of(step, embed_texts, recipe)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield number, loss.item()
