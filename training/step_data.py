"""The batches of a run as the trainer reads them: planned texts behind their prompts, as token ids with labels."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from training.encoders import plain_tokenizer, tokenise
from training.objectives import Labels
from training.prompts import in_context_documents, in_context_queries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from torch import Tensor

    from training.data.batches import TextBatch
    from training.data.sampling import BatchPlan
    from training.encoders import Kind
    from training.recipe import TrainRecipe


class StepData(Dataset[dict[str, Any]]):
    """Item i is the i-th batch of the run, this process' part of it, tokenised.

    Items are a function of their number alone, so a resumed run skips by counting.

    Args:
        plan: which texts, when.
        model: whose tokenizer and prompts are used.
        recipe: lengths and number of steps.
    """

    def __init__(self, plan: BatchPlan, model: SentenceTransformer, recipe: TrainRecipe) -> None:
        self.plan, self.model, self.recipe = plan, model, recipe

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.gradient_accumulation

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Token ids of B queries and B * N documents, (length,) int64 each, labels, and the ids of the queries."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of a run of {len(self)}")
        batch = self.plan.batch(number)
        settings = self.recipe.in_context
        if settings is None:
            query, document = self._tokens(batch.queries, "query"), self._tokens(batch.documents, "document")
        else:
            tokenizer = self._plain_tokenizer
            query = as_tensors(in_context_queries(batch, tokenizer, settings, seed=self.recipe.seed, step=number))
            document = as_tensors(in_context_documents(batch, tokenizer, settings))
        return {
            "query": query,
            "document": document,
            "facts": labels_of(batch),  # not `labels`, which the stock trainer would count
            "query_ids": batch.query_ids,
            "dataset": batch.dataset,
        }

    @cached_property
    def _plain_tokenizer(self) -> Tokenizer:
        return plain_tokenizer(self.model)

    def _tokens(self, texts: list[str], kind: Kind) -> list[Tensor]:
        prompt = (self.model.prompts or {}).get(kind) or ""
        limit = self.recipe.query_length if kind == "query" else None
        return tokenise(self.model, [prompt + text for text in texts], kind, max_length=limit)


def as_tensors(rows: list[list[int]]) -> list[Tensor]:
    """Token ids as int64 tensors, (length,) each."""
    return [torch.tensor(ids) for ids in rows]


def labels_of(batch: TextBatch) -> Labels:
    """What a batch of texts says about its documents, as tensors."""
    return Labels.of(
        positives=batch.positives,
        absent=batch.absent,
        scores=batch.scores,
        document_ids=batch.document_ids,
        in_batch_negatives=batch.task.in_batch_negatives,
    )
