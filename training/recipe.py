"""What a training run is told: backbone, data, objective, optimiser; one dataclass, read from a YAML recipe.

Defaults are DRAMA 0.1B's (arXiv 2502.18460, section 4.2) with DRAGON's optimiser (arXiv 2302.07452), which its authors
name as their trainer. What other systems do differently is in `training/recipes/`, field by field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.hardware import TrainingPrecision
from drama_models.recipe import check_least
from training.data.datasets import DatasetRecipe
from training.encoders import EncoderRecipe
from training.evaluation import EvaluationRecipe
from training.objectives import Contrastive, FalseNegatives, Listwise, Matryoshka, RerankerDistillation, WeightedSum
from training.objectives.matryoshka import check_sizes
from training.objectives.weighted_sum import check_weights
from training.prompts import InContextSettings

if TYPE_CHECKING:
    from training.objectives import Objective
    from training.objectives.similarity import Similarity

LEAST = {
    "steps": 1, "batch_size": 1, "gradient_accumulation": 1, "chunk_tokens": 1, "log_every": 1, "save_every": 1,
    "query_length": 3, "negatives": 0, "learning_rate": 0, "learning_rate_floor": 0, "warmup_steps": 0,
    "weight_decay": 0, "max_grad_norm": 0, "seed": 0,
}  # fmt: skip
"""Smallest value of each number; no field is infinite."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecipe:
    """What is minimised: a weighted sum of up to three objectives, at one or several sizes of the embedding."""

    contrastive: Contrastive | None = field(default_factory=Contrastive)
    """InfoNCE over the batch; null leaves it out."""
    contrastive_weight: float = 1.0
    """Of the contrastive term; the specialisation paper's is 0.1."""
    listwise: Listwise | None = None
    """Divergence from the teacher's distribution over each query's own documents."""
    listwise_weight: float = 1.0
    """Of that divergence."""
    reranker: RerankerDistillation | None = None
    """Cross-entropy with a reranker's softmax, as in bge-en-icl."""
    reranker_weight: float = 1.0
    """Of that cross-entropy."""
    dims: tuple[int, ...] = ()
    """Matryoshka sizes, the full size included; empty trains the full size alone."""
    dim_weights: tuple[float, ...] | None = None
    """Weight of each size; 1 by default."""

    def __post_init__(self) -> None:
        if not self._terms():
            raise ValueError("objective has no term; set contrastive, listwise or reranker.")
        check_weights(self.dim_weights, len(self.dims), "dims", name="dim_weights")
        check_sizes(self.dims)
        shares = {f"{name}_weight": getattr(self, f"{name}_weight") for name in ("contrastive", "listwise", "reranker")}
        for name, share in shares.items():
            if not 0 <= share < math.inf:
                raise ValueError(f"{name}={share} must not be negative; 1 is usual, null leaves the term itself out.")
        self.build()

    @classmethod
    def specialisation(cls, *, similarity: Similarity = "cosine", dims: tuple[int, ...] = ()) -> ObjectiveRecipe:
        """What specialises a retriever to a domain (Tamber et al., arXiv 2502.19712, section 3).

            L = KL of the lists (student 0.05, teacher 0.3) + 0.1 * InfoNCE (0.01)

        A negative whose teacher score is above 0.6 of the positive's is taken for a positive, and left out of InfoNCE.

        Args:
            similarity: of the retriever's embeddings.
            dims: Matryoshka sizes, as the field.
        """
        return cls(
            listwise=Listwise(student_temperature=0.05, teacher_temperature=0.3, similarity=similarity),
            contrastive=Contrastive(temperature=0.01, false_negatives=FalseNegatives(share=0.6), similarity=similarity),
            contrastive_weight=0.1,
            dims=dims,
        )

    def build(self) -> Objective:
        """The objective that this describes."""
        terms = self._terms()
        objective = WeightedSum(objectives=tuple(term for term, _ in terms), weights=tuple(share for _, share in terms))
        return Matryoshka(objective=objective, dims=self.dims, weights=self.dim_weights) if self.dims else objective

    @property
    def needs_lists(self) -> bool:
        """Whether every query needs a list of scored documents."""
        return any(term is not None and term.unscored == "refuse" for term in (self.listwise, self.reranker))

    def _terms(self) -> list[tuple[Any, float]]:
        pairs = (
            (self.contrastive, self.contrastive_weight),
            (self.listwise, self.listwise_weight),
            (self.reranker, self.reranker_weight),
        )
        return [(term, weight) for term, weight in pairs if term is not None]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Settings of a training run."""

    backbone: Path
    """Folder to start from: a Llama, another decoder, or an encoder such as BERT."""
    document_backbone: Path | None = None
    """Start of the document encoder, where two encoders begin differently."""
    out: Path
    """Folder to make."""
    datasets: list[DatasetRecipe]
    """What is trained on; one dataset a batch."""
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    """How the backbone becomes an encoder."""
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    """What is minimised."""
    continue_retriever: bool = False
    """Whether the backbone is a retriever whose pooling, prompts, lengths and number of encoders are kept; of `encoder`
    then only dropout, lora, gradient_checkpointing and packed count."""
    in_context: InContextSettings | None = None
    """Instructions and solved examples in front of queries; the encoder's prompts and lengths then do not count."""
    evaluation: EvaluationRecipe | None = None
    """Collection to evaluate on; the best checkpoint is then what is kept. None by default."""
    steps: int = 200_000
    """Optimiser steps."""
    epochs: float | None = None
    """Passes over the mixture, instead of steps."""
    batch_size: int = 2048
    """Queries of a step over all devices, for retrieval; other tasks take their share of it."""
    negatives: int = 7
    """Hard negatives of each query."""
    gradient_accumulation: int = 1
    """Batches whose gradients are added up to a step; each has its own in-batch negatives."""
    query_length: int | None = None
    """Tokens kept of a query; the encoder's max_length by default."""
    chunk_tokens: int | None = None
    """Encode so many tokens at a time, gradients through a cache; None encodes a batch at once."""
    cross_device_negatives: bool = True
    """Whether documents of all devices are negatives."""
    learning_rate: float = 3e-5
    """Of AdamW."""
    learning_rate_floor: float = 0.0
    """Share of the rate below which the linear decay does not go."""
    warmup_steps: int = 10_000
    """Steps over which the rate rises from zero."""
    restart_iterations: bool = True
    """Whether optimiser, warm-up and decay begin anew when progressive supervision adds a teacher, as in DRAGON."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 2.0
    """Gradients are clipped to this global norm."""
    precision: TrainingPrecision = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the processor has it."""
    seed: int = 0
    """Of the order of queries, the draws of documents, dropout and everything else that is random."""
    device: str | None = None
    """Such as cpu; a GPU if there is one by default."""
    cache: Path | None = None
    """Folder for what is read from memory-mapped files; `.cache` in each collection by default."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 500
    """Steps between checkpoints, where no evaluation says it."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """More fields of SentenceTransformerTrainingArguments, such as report_to or dataloader_num_workers."""

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens that are kept of a text, by the name of each setting that counts."""
        if self.in_context:
            names = ("query_max_length", "document_max_length")
            return {f"in_context.{name}": getattr(self.in_context, name) for name in names}
        queries = {} if self.query_length is None else {"query_length": self.query_length}
        return {"encoder.max_length": self.encoder.max_length} | queries

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs={self.epochs} must be positive, or left out for steps to count.")
        if not self.datasets:
            raise ValueError("datasets is empty; name at least one, with its collection and examples.")
        if self.document_backbone and not (self.encoder.two_encoders or self.continue_retriever):
            raise ValueError(
                "document_backbone is the start of a second encoder; set encoder.two_encoders, or leave it out."
            )
        settings = self.in_context
        if settings is None and self.evaluation and self.evaluation.instruction:
            raise ValueError("evaluation.instruction is read in runs with in_context alone; set that, or drop it.")
        for dataset in self.datasets if settings is None else ():
            if dataset.instruction:
                raise ValueError(
                    f"Dataset {dataset.name!r} has an instruction, which is read in runs with in_context alone; set "
                    "that, or drop it."
                )
        if settings and settings.max_examples and settings.query_max_length <= settings.kept_for_query:
            raise ValueError(
                f"kept_for_query={settings.kept_for_query} leaves no room for examples in "
                f"query_max_length={settings.query_max_length}; set it lower, or max_examples to 0."
            )
