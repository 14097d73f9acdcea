"""Train a retriever from a backbone: contrastive, with Matryoshka dimensions, in one stage (DRAMA, section 3).

Runs on the sentence-transformers trainer, so accelerate, mixed precision, checkpoints and loggers are the ecosystem's.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from drama_models.collection import Collection
from drama_models.errors import CollectionError, TrainingError
from drama_models.folders import atomic_folder
from drama_models.hardware import Precision, train_in_bf16
from drama_models.progress import ProgressLog
from drama_models.provenance import write_provenance
from training.encoders import EncoderRecipe, build_encoder
from training.examples import TrainingExample, read_examples
from training.objectives import trainer_loss
from training.start import PROMPTS, write_start_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentence_transformers import SentenceTransformer

COMPLETE = "complete"
LOG = "training_log.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Settings of contrastive training; defaults as for DRAMA 0.1B (arXiv 2502.18460, 4.2) with DRAGON's optimiser."""

    backbone: Path
    """Llama folder to start from."""
    collection: Path
    """BEIR folder with the documents of the examples."""
    examples: Path
    """Training examples, JSON lines."""
    out: Path
    """Folder to make."""
    steps: int = 200_000
    """Optimiser steps."""
    batch_size: int = 2048
    """Queries in a step on one device."""
    negatives: int = 7
    """Hard negatives of each query, drawn from the example's; queries with fewer are left out."""
    dims: tuple[int, ...] = (768, 512, 256, 128, 64)
    """Matryoshka sizes to train, full size included."""
    dim_weights: tuple[float, ...] | None = None
    """Weight of each size; 1 by default."""
    temperature: float = 0.02
    """Divides the cosines. The paper does not state it."""
    bidirectional: bool = True
    """Whether every token sees every other."""
    pooling: Literal["mean", "last"] = "mean"
    """Mean over all tokens, or the state of EOS."""
    max_length: int = 256
    """Tokens kept of each text."""
    learning_rate: float = 3e-5
    """Of AdamW."""
    warmup_steps: int = 10_000
    """Linear, then linear decay to zero."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 2.0
    """Gradients are clipped to this global norm."""
    precision: Precision = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the processor has it."""
    seed: int = 0
    """Of the draws of documents, the order of queries and everything else that is random."""
    device: str | None = None
    """Such as cpu; a GPU if there is one by default."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 500
    """Steps between checkpoints."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """More fields of SentenceTransformerTrainingArguments, such as report_to or gradient_checkpointing."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"steps={self.steps} must be at least 1 and batch_size={self.batch_size} at least 2.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive; 0.02 is a usual choice.")
        if self.dim_weights is not None and len(self.dim_weights) != len(self.dims):
            raise ValueError(
                f"dim_weights has {len(self.dim_weights)} values for {len(self.dims)} dims; set one for each."
            )


def train(recipe: TrainRecipe) -> dict[str, Any]:
    """Train a retriever and write it as a new folder that sentence-transformers loads.

    Resumes at the last complete checkpoint of an interrupted run with the same `out`.

    Returns:
        The provenance record of the made folder.

    Raises:
        ModelFolderError: the backbone is not a complete Llama folder.
        CollectionError: malformed examples, ids that the collection does not have, or too few examples.
        TrainingError: the loss became non-finite.
    """
    work = recipe.out.parent / f".{recipe.out.name}.checkpoints"
    checkpoint = last_complete_checkpoint(work)
    if checkpoint is None:
        shutil.rmtree(work, ignore_errors=True)
        write_start_folder(recipe.backbone, work / "start", bidirectional=recipe.bidirectional)
    torch.manual_seed(recipe.seed)
    encoder = EncoderRecipe(
        bidirectional=recipe.bidirectional, pooling=recipe.pooling, max_length=recipe.max_length, packed=False
    )
    model = build_encoder(work / "start", encoder, device=recipe.device)
    if max(recipe.dims) > (model.get_embedding_dimension() or 0):
        raise TrainingError(
            f"dims={recipe.dims} go beyond the backbone's {model.get_embedding_dimension()}; use sizes up to that."
        )
    data = training_rows(recipe)
    trainer = RetrieverTrainer(recipe, work, model, data)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _write_folder(recipe, model, work, {"examples": len(data), "steps": recipe.steps})


def training_rows(recipe: TrainRecipe) -> Dataset:
    """One row an example: query, a positive drawn from its pool, and hard negatives, as text with prompts.

    Returns:
        A dataset with the columns query, positive, negative_1, ..., all text.

    Raises:
        CollectionError: an id that is not in the collection, or fewer usable examples than a batch.
    """
    usable = [example for example in read_examples(recipe.examples) if len(example.negative_ids) >= recipe.negatives]
    if len(usable) < recipe.batch_size:
        raise CollectionError(
            f"{recipe.examples} has {len(usable)} examples with at least {recipe.negatives} negatives, "
            f"fewer than a batch of {recipe.batch_size}; set a lower batch_size or fewer negatives."
        )
    contents = _contents(recipe.collection, usable)
    generator = np.random.default_rng(recipe.seed)
    names = ["query", "positive", *(f"negative_{number}" for number in range(1, recipe.negatives + 1))]
    columns: dict[str, list[str]] = {name: [] for name in names}
    for example in usable:
        drawn = generator.permutation(len(example.negative_ids))[: recipe.negatives]
        documents = [generator.choice(example.positive_ids), *(example.negative_ids[index] for index in drawn)]
        texts = [PROMPTS["query"] + example.query, *(PROMPTS["document"] + contents[key] for key in documents)]
        for name, text in zip(names, texts, strict=True):
            columns[name].append(text)
    return Dataset.from_dict(columns)


def last_complete_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [marker.parent for marker in work.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


class RetrieverTrainer(SentenceTransformerTrainer):
    """The sentence-transformers trainer, stopping at a loss that is not finite."""

    def __init__(self, recipe: TrainRecipe, work: Path, model: SentenceTransformer, data: Dataset) -> None:
        loss = trainer_loss(model, dims=recipe.dims, weights=recipe.dim_weights, temperature=recipe.temperature)
        super().__init__(model=model, args=_arguments(recipe, work), train_dataset=data, loss=loss)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_Progress(recipe, work))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Nothing: cards are written from provenance."""

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One step of the stock trainer, checked."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}; the last checkpoint is kept. "
                "Try a lower learning_rate, or a higher temperature."
            )
        return loss


def _arguments(recipe: TrainRecipe, work: Path) -> SentenceTransformerTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(work),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size,
        "batch_sampler": BatchSamplers.NO_DUPLICATES,  # an in-batch negative must not be anyone's positive
        "dataloader_drop_last": True,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": train_in_bf16(recipe.precision),
        "use_cpu": recipe.device == "cpu",
        "seed": recipe.seed,
        "logging_steps": recipe.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return SentenceTransformerTrainingArguments(**(settings | recipe.trainer))


def _contents(folder: Path, examples: Iterable[TrainingExample]) -> dict[str, str]:
    """Content of every document that an example names."""
    wanted = {key: example.query_id for example in examples for key in (*example.positive_ids, *example.negative_ids)}
    contents = {document.id: document.content for document in Collection(folder).documents() if document.id in wanted}
    missing = next((key for key in wanted if key not in contents), None)
    if missing is not None:
        raise CollectionError(
            f"Document {missing!r}, named by training example {wanted[missing]!r}, is not in {folder}; "
            "use examples mined on this collection."
        )
    return contents


def _write_folder(
    recipe: TrainRecipe, model: SentenceTransformer, work: Path, figures: dict[str, Any]
) -> dict[str, Any]:
    with atomic_folder(recipe.out) as partial:
        model.save_pretrained(str(partial), create_model_card=False)
        config_file = partial / "config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["matryoshka_dimensions"] = sorted(recipe.dims, reverse=True)
        config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copy(work / "log.jsonl", partial / LOG)
        record = write_provenance(
            partial,
            stage="training.train",
            recipe=recipe,
            inputs={"backbone": recipe.backbone, "collection": recipe.collection},
            figures=figures,
            parent=recipe.backbone,
        )
    shutil.rmtree(work)
    return record


class _Progress(TrainerCallback):
    """One steady line, and a mark on every checkpoint that is complete."""

    def __init__(self, recipe: TrainRecipe, work: Path) -> None:
        self.recipe, self.work = recipe, work

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        (self.work / "log.jsonl").touch()
        self.log = ProgressLog(self.work / "log.jsonl", self.recipe.steps, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self.log.record(state.global_step, **{name: value for name, value in logs.items() if name != "epoch"})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        (self.work / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        os.sync()
