"""The batches of a run as the trainer reads them: planned texts behind their prompts, as token ids with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from training.encoders import tokenise
from training.objectives import Labels

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from training.batches import TextBatch
    from training.encoders import Kind
    from training.recipe import TrainRecipe
    from training.sampling import BatchPlan


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
        return {
            "query": self._tokens(batch.queries, "query"),
            "document": self._tokens(batch.documents, "document"),
            "facts": labels_of(batch),  # not `labels`, which the stock trainer would count
            "query_ids": batch.query_ids,
            "dataset": batch.dataset,
        }

    def _tokens(self, texts: list[str], kind: Kind) -> list[Tensor]:
        prompt = (self.model.prompts or {}).get(kind) or ""
        limit = self.recipe.query_length if kind == "query" else None
        return tokenise(self.model, [prompt + text for text in texts], kind, max_length=limit)


def labels_of(batch: TextBatch) -> Labels:
    """What a batch of texts says about its documents, as tensors."""
    return Labels.of(
        positives=batch.positives,
        absent=batch.absent,
        scores=batch.scores,
        document_ids=batch.document_ids,
        in_batch_negatives=batch.task.in_batch_negatives,
    )
