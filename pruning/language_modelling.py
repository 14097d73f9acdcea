"""The trainer that both stages share: the Hugging Face Trainer on packed sequences, in an order fixed by the seed.

Accelerate (DDP, FSDP), mixed precision, accumulation, clipping and loggers are the Trainer's own. Added here: the fixed
order, a stop at the first non-finite loss, checkpoints that are complete or absent, and one steady line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from drama_models import checkpoints
from drama_models.errors import TrainingError
from drama_models.folders import atomic_file
from drama_models.hardware import TrainingPrecision, train_in_bf16
from drama_models.progress import ProgressLog
from drama_models.recipe import check_least, trainer_arguments
from pruning.distributed import world_size
from pruning.dynamic_loading import DynamicLoading
from pruning.held_out import held_out_figures
from pruning.mixture import MixedSequences
from pruning.proportions import Update, read_reference_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from pruning.corpus import Corpus

LEAST = {
    "steps": 1, "sequence_length": 2, "batch_size": 1, "gradient_accumulation": 1, "update_every": 1, "log_every": 1,
    "save_every": 1, "held_out_sequences": 1, "learning_rate": 0, "warmup_steps": 0, "min_lr_rate": 0,
    "weight_decay": 0, "adam_beta2": 0, "max_grad_norm": 0, "seed": 0,
}  # fmt: skip
"""Smallest value of each number; no field is infinite."""


@dataclass(frozen=True, kw_only=True)
class StageFolders:
    """What a stage reads and makes."""

    model: Path
    """Source folder: a Llama-shaped causal language model with its tokenizer."""
    corpus: Path
    """Tokenised corpus, made by `python -m pruning tokenise`."""
    out: Path
    """Folder to make."""


@dataclass(frozen=True, kw_only=True)
class LanguageModellingSettings:
    """What both stages need to know. Defaults are Sheared-LLaMA's (arXiv 2310.06694, section 3.1 and appendix A)."""

    updates_before_training: ClassVar[bool] = False
    """Whether shares that follow the losses are updated once before the first step too."""
    steps: int
    """Optimiser steps."""
    sequence_length: int = 4096
    """Tokens in a sequence."""
    separate_documents: bool = False
    """Whether attention, positions and loss stop at the ends of documents packed into one sequence."""
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
    precision: TrainingPrecision = "auto"
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
    def held_out(self) -> dict[str, Any]:
        """Arguments of `pruning.held_out.held_out_figures`."""
        return {
            "length": self.sequence_length,
            "batch_size": self.batch_size // self.gradient_accumulation,
            "limit": self.held_out_sequences,
            "separate_documents": self.separate_documents,
        }

    def __post_init__(self) -> None:
        check_least(self, LEAST)
        if self.min_lr_rate > 1:
            raise ValueError(f"min_lr_rate={self.min_lr_rate} must be at most 1.")
        if self.adam_beta2 >= 1:
            raise ValueError(f"adam_beta2={self.adam_beta2} must be below 1.")
        if self.update_proportions != "constant" and self.reference_losses is None:
            raise ValueError(
                f"update_proportions={self.update_proportions} needs reference_losses; "
                "make them with `python -m pruning reference-loss`."
            )
        if self.update_proportions != "constant" and self.trainer.get("dataloader_num_workers"):
            raise ValueError(
                f"update_proportions={self.update_proportions} does not reach workers, which keep to the first shares; "
                "leave dataloader_num_workers out of trainer."
            )
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of "
                f"gradient_accumulation={self.gradient_accumulation}; use one that divides it."
            )


class LanguageModellingRecipe(LanguageModellingSettings, StageFolders):
    """Settings of a stage with its folders."""


class LanguageModelTrainer(Trainer):
    """Trainer that reads sequences in their given order and stops at a loss that is not a finite number.

    Args:
        recipe: settings.
        model: returns a loss.
        corpus: tokenised text.
        targets: of figures in the log, shown beside them.
    """

    def __init__(
        self,
        recipe: LanguageModellingRecipe,
        model: torch.nn.Module,
        corpus: Corpus,
        targets: dict[str, float] | None = None,
    ) -> None:
        count = recipe.steps * recipe.batch_size * world_size()
        self.data = MixedSequences(
            corpus,
            recipe.proportions,
            recipe.sequence_length,
            count,
            recipe.seed,
            separate_documents=recipe.separate_documents,
        )
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=self.data)
        self.out = recipe.out
        self.loading: DynamicLoading | None = None
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        if recipe.update_proportions != "constant" and recipe.reference_losses is not None:
            reference = read_reference_losses(recipe.reference_losses, corpus.domains)
            self.loading = DynamicLoading(recipe, self.data, corpus, reference)
            self.add_callback(self.loading)
        self.add_callback(_Progress(recipe, targets or {}))

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

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        return str(checkpoints.writing_folder(self.out))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        name = f"checkpoint-{self.state.global_step}"
        if self.loading is not None and self.args.should_save:
            self.loading.save(checkpoints.writing_folder(self.out) / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.place_checkpoint(self.out, name)
        self.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Trained:
    """What a run leaves behind for the stage that started it."""

    before: dict[str, dict[str, float]]
    """Held-out figures of the model that went in."""
    updates: list[dict[str, Any]]
    """Changes of the domains' shares."""
    epochs: dict[str, float]
    """How often each domain's text was read."""


def train(
    recipe: LanguageModellingRecipe, trainer: LanguageModelTrainer, stock: PreTrainedModel, corpus: Corpus
) -> Trained:
    """Train, from the start or from the last checkpoint of an interrupted run with the same `out`.

    Args:
        recipe: settings.
        trainer: made from them.
        stock: the model that goes in.
        corpus: tokenised text.

    Raises:
        TrainingError: the loss became non-finite, or an interrupted run had other settings.
    """
    if trainer.args.should_save:
        checkpoints.begin(recipe.out, recipe)
    trainer.accelerator.wait_for_everyone()
    checkpoint = checkpoints.last_checkpoint(recipe.out)
    path = checkpoints.checkpoint_folder(recipe.out) / "before.json"
    if trainer.args.should_save and not path.is_file():  # measured once, and kept for a resumed run
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(held_out_figures(stock, corpus, **recipe.held_out)), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    before = json.loads(path.read_text(encoding="utf-8"))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return Trained(before, trainer.loading.updates if trainer.loading else [], trainer.data.epochs)


def training_arguments(recipe: LanguageModellingRecipe) -> TrainingArguments:
    """The Trainer's own settings for a recipe; `recipe.trainer` has the last word.

    Raises:
        RecipeError: a setting of `trainer` that there is not, or that the Trainer refuses.
    """
    settings: dict[str, Any] = {
        "output_dir": str(checkpoints.checkpoint_folder(recipe.out)),
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
        # bfloat16 without a GPU is refused unless this says that the processor is meant
        "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "seed": recipe.seed,
        "logging_steps": recipe.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": recipe.save_every,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return trainer_arguments(TrainingArguments, settings, recipe.trainer)


class _Progress(TrainerCallback):
    """The steady line and the log; in a resumed run the log goes on from the checkpoint's step."""

    def __init__(self, recipe: LanguageModellingRecipe, targets: dict[str, float]) -> None:
        self.recipe, self.targets = recipe, targets

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        path = checkpoints.log_file(self.recipe.out)
        if state.is_world_process_zero:
            self.log = ProgressLog(path, self.recipe.steps, state.global_step, self.targets)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Log at every checkpoint: the mean loss since the last line is not part of it, and would be lost."""
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            self.log.record(state.global_step, **{name: value for name, value in logs.items() if name != "epoch"})
