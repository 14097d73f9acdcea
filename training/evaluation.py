"""Evaluation during training: the whole collection, exact search, metrics by ir-measures; never in-batch accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.evaluation import BaseEvaluator

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.evaluation import METRICS, evaluate
from drama_models.prompts import InContextPrompter
from training.encoders import plain_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from drama_models.evaluation import Run
    from drama_models.prompts import InstructFormat

DEPTH = 100  # documents kept for each query: what nDCG@10 and Recall@100 look at
DOCUMENTS_AT_ONCE = 4096
METRIC = "ndcg@10"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecipe:
    """On what, and how often, a training is evaluated, and when it stops for lack of progress."""

    collection: Path
    """BEIR folder; keep its judged queries out of the training data."""
    split: str = "dev"
    """Whose judgements."""
    instruction: str = ""
    """What its queries ask for, in a run with `in_context`; they are asked without solved examples."""
    every: int = 500
    """Steps between evaluations; a checkpoint is written at each."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better nDCG@10; never by default."""
    batch_size: int = 32
    """Texts encoded together."""

    def __post_init__(self) -> None:
        if self.every < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"every={self.every} and patience={self.patience} must be at least 1.")


class CollectionEvaluator(BaseEvaluator):
    """nDCG@10, Recall@100, MRR@10 and MAP of the model as it is, over every document of a collection.

    Args:
        recipe: collection and split.
        tags: around instruction and query, where the model is trained with them.
        title_separator: between title and text of a document.

    Raises:
        CollectionError: the collection or its split is missing or malformed, or has no judged query.
    """

    def __init__(
        self, recipe: EvaluationRecipe, tags: InstructFormat | None = None, title_separator: str = " "
    ) -> None:
        super().__init__()
        self.recipe, self._tags, self._separator = recipe, tags, title_separator
        self.primary_metric = METRIC
        self._collection = Collection(recipe.collection)
        self._qrels = {query: grades for query, grades in self._collection.qrels(recipe.split).items() if grades}
        if not self._qrels:
            raise CollectionError(f"{recipe.collection} has no judged query in {recipe.split!r}; choose another split.")
        queries = self._collection.queries()
        self._queries = {query: queries[query] for query in self._qrels}

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,  # noqa: ARG002
        epoch: float = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """Value by metric name, each in [0, 1]."""
        return evaluate(self._run(model), self._qrels, tuple(METRICS))

    def _run(self, model: Any) -> Run:
        settings: dict[str, Any] = {
            "batch_size": self.recipe.batch_size,
            "convert_to_tensor": True,
            "show_progress_bar": False,
        }
        if self._tags is not None:
            settings["prompt"] = ""  # queries carry theirs
        queries: Tensor = model.encode_query(self._asked(model), **settings).float()  # (Q, D)
        scores = torch.empty(len(queries), 0, device=queries.device)
        ids: list[str] = []
        rows = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
        for names, texts in self._portions():
            documents: Tensor = model.encode_document(texts, **settings).float()  # (P, D)
            new = torch.arange(len(ids), len(ids) + len(names), device=queries.device).expand(len(queries), -1)
            ids.extend(names)
            # only the best so far and this portion are ever compared: memory does not grow with the collection
            joined = torch.cat([scores, queries @ documents.T], dim=1)
            scores, best = joined.topk(min(DEPTH, joined.shape[1]), dim=1)
            rows = torch.cat([rows, new], dim=1).gather(1, best)
        return {
            query: {ids[row]: score for row, score in zip(found, values, strict=True)}
            for query, found, values in zip(self._queries, rows.tolist(), scores.tolist(), strict=True)
        }

    def _asked(self, model: Any) -> list[str]:
        """The queries, between their tags where the model is trained with them; only the query is ever cut."""
        queries = list(self._queries.values())
        if self._tags is None:
            return queries
        prompt = self._tags.before(self.recipe.instruction or None)
        return InContextPrompter(plain_tokenizer(model), self._tags, prompt, "", model.max_seq_length).texts(queries)

    def _portions(self) -> Iterator[tuple[list[str], list[str]]]:
        names: list[str] = []
        texts: list[str] = []
        for document in self._collection.documents():
            names.append(document.id)
            texts.append(document.joined(self._separator))
            if len(names) == DOCUMENTS_AT_ONCE:
                yield names, texts
                names, texts = [], []
        if names:
            yield names, texts
