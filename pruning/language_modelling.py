"""The trainer that both stages share: the Hugging Face Trainer on packed sequences, in an order fixed by the seed.

Accelerate, mixed precision, accumulation, clipping, checkpoints and loggers are the Trainer's own. Added here: the
fixed order, a stop at the first non-finite loss, a checkpoint that counts only once it is complete, and one steady
line.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from drama_models.errors import TrainingError
from drama_models.folders import atomic_file
from drama_models.hardware import Precision, train_in_bf16
from drama_models.progress import ProgressLog
from pruning.dynamic_loading import DynamicLoading
from pruning.held_out import held_out_figures
from pruning.proportions import Update, read_reference_losses

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

    from pruning.corpus import Corpus
    from pruning.mixture import MixedSequences

COMPLETE = "complete"  # a file of this name says that its checkpoint folder was written to the end


@dataclass(frozen=True, kw_only=True)
class LanguageModellingRecipe:
    """What both stages need to know. Defaults are Sheared-LLaMA's (arXiv 2310.06694, section 3.1 and appendix A)."""

    model: Path
    """Source folder: a Llama-shaped causal language model with its tokenizer."""
    corpus: Path
    """Tokenised corpus, made by `python -m pruning tokenise`."""
    out: Path
    """Folder to make."""
    steps: int
    """Optimiser steps."""
    sequence_length: int = 4096
    """Tokens in a sequence."""
    batch_size: int = 32
    """Sequences in an optimiser step on one device."""
    gradient_accumulation: int = 1
    """Parts that a step's batch is cut into."""
    learning_rate: float = 1e-4
    """Of the model's weights."""
    warmup_steps: int = 0
    """Steps over which the rate rises from zero."""
    min_lr_rate: float = 0.1
    """Share of the rate that is left at the end of the cosine."""
    weight_decay: float = 0.0
    """Of AdamW."""
    adam_beta2: float = 0.95
    """Second-moment decay of AdamW; the first is 0.9."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    precision: Precision = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the processor has it."""
    proportions: dict[str, float] = field(default_factory=dict)
    """Share of each text domain, at the start; empty means by size."""
    update_proportions: Update = "constant"
    """Rule by which shares follow the held-out losses: constant, doremi (dynamic batch loading) or bandit."""
    update_every: int = 50
    """Steps between updates of the shares."""
    reference_losses: Path | None = None
    """Loss that each domain is expected to reach: JSON by domain, made by `python -m pruning reference-loss`."""
    clip_differences: bool = False
    """Whether a domain below its reference counts as at it (the paper's algorithm; the authors' code does not clip)."""
    seed: int = 0
    """Of the order of text and of everything random."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 200
    """Steps between checkpoints."""
    held_out_sequences: int = 64
    """Held-out sequences of each domain to evaluate on, at most."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """More fields of transformers.TrainingArguments, such as report_to, gradient_checkpointing or torch_compile."""

    @property
    def held_out(self) -> dict[str, int]:
        """Arguments of `pruning.held_out.held_out_figures`."""
        return {
            "length": self.sequence_length,
            "batch_size": self.batch_size // self.gradient_accumulation,
            "limit": self.held_out_sequences,
        }

    def __post_init__(self) -> None:
        if self.steps < 1 or self.update_every < 1:
            raise ValueError(f"steps={self.steps} and update_every={self.update_every} must be at least 1.")
        if self.update_proportions != "constant" and self.reference_losses is None:
            raise ValueError(
                f"update_proportions={self.update_proportions} needs reference_losses; "
                "make them with `python -m pruning reference-loss`."
            )
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of "
                f"gradient_accumulation={self.gradient_accumulation}; use one that divides it."
            )


class LanguageModelTrainer(Trainer):
    """Trainer that reads sequences in their given order and stops at a loss that is not a finite number."""

    def __init__(
        self, recipe: LanguageModellingRecipe, model: torch.nn.Module, data: MixedSequences, corpus: Corpus
    ) -> None:
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=data)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        if recipe.update_proportions != "constant" and recipe.reference_losses is not None:
            reference = read_reference_losses(recipe.reference_losses, corpus.domains)
            self.add_callback(DynamicLoading(recipe, data, corpus, reference))
        self.add_callback(_Checkpoints())
        self.add_callback(_Progress(recipe))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(cast(Any, self.train_dataset if train_dataset is None else train_dataset))

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One step of the stock trainer, checked."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            step = self.state.global_step
            raise TrainingError(
                f"The loss is {loss.item()} at step {step + 1}; nothing after the last checkpoint is kept. "
                "Try a lower learning_rate, or look at the text of this step."
            )
        return loss


def training_arguments(recipe: LanguageModellingRecipe) -> TrainingArguments:
    """The Trainer's own settings for a recipe; `recipe.trainer` has the last word."""
    settings: dict[str, Any] = {
        "output_dir": str(checkpoint_folder(recipe.out)),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size // recipe.gradient_accumulation,
        "per_device_eval_batch_size": recipe.batch_size // recipe.gradient_accumulation,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": recipe.min_lr_rate},
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta2": recipe.adam_beta2,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": train_in_bf16(recipe.precision),
        "seed": recipe.seed,
        "logging_steps": recipe.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(**(settings | recipe.trainer))


def checkpoint_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints until the folder `out` is made: a hidden sibling."""
    return out.parent / f".{out.name}.checkpoints"


def last_complete_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [marker.parent for marker in checkpoint_folder(out).glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def figures_before(
    model: torch.nn.Module, corpus: Corpus, recipe: LanguageModellingRecipe
) -> dict[str, dict[str, float]]:
    """Held-out figures of the model that goes in; measured once, and kept with the checkpoints for a resumed run."""
    path = checkpoint_folder(recipe.out) / "before.json"
    if not path.is_file():
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(held_out_figures(model, corpus, **recipe.held_out)), encoding="utf-8")
    figures: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return figures


class _Checkpoints(TrainerCallback):
    """Marks a checkpoint once everything in it is on disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        os.sync()


class _Progress(TrainerCallback):
    def __init__(self, recipe: LanguageModellingRecipe) -> None:
        self.recipe = recipe

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        path = checkpoint_folder(self.recipe.out) / "log.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.log = ProgressLog(path, self.recipe.steps, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.log.record(state.global_step, **{name: value for name, value in logs.items() if name != "epoch"})
