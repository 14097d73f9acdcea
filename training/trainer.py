"""The trainer: sentence-transformers' own, on planned batches, unpadded embeddings and our objectives.

Accelerate (DDP), mixed precision, accumulation, clipping, loggers, evaluation and early stopping are the stock
trainer's. Added here: batches that are a function of the seed and the step, schedules that begin anew, a stop at the
first loss or gradient that is not finite, and checkpoints that are complete or absent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from drama_models import checkpoints
from drama_models.errors import TrainingError
from drama_models.hardware import train_in_bf16
from drama_models.progress import ProgressLog
from drama_models.recipe import trainer_arguments
from training.encoders import KINDS, load_adapters
from training.evaluation import METRIC, CollectionEvaluator
from training.schedules import linear_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer
    from torch import nn

    from training.recipe import TrainRecipe
    from training.step_data import StepData
    from training.step_loss import StepLoss

STATE = "trainer_state.json"
NAMED_QUERIES = 8  # of a batch whose loss is not finite


class RetrieverTrainer(SentenceTransformerTrainer):
    """The sentence-transformers trainer on planned batches.

    Args:
        recipe: settings.
        arguments: the stock trainer's settings, made from them.
        model: what is trained.
        data: the run's batches, tokenised, one for each forward pass.
        loss: from a tokenised batch to a scalar.
        starts: steps at which optimiser and schedule begin anew, 0 first.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        arguments: SentenceTransformerTrainingArguments,
        model: SentenceTransformer,
        data: StepData,
        loss: StepLoss,
        starts: Sequence[int] = (0,),
    ) -> None:
        tags, separator = recipe.in_context.tags if recipe.in_context else None, recipe.encoder.title_separator
        evaluator = CollectionEvaluator(recipe.evaluation, tags, separator) if recipe.evaluation else None
        super().__init__(model=model, args=arguments, loss=loss, evaluator=evaluator)
        self.recipe, self.data, self.step_loss, self.starts = recipe, data, loss, starts
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        if recipe.evaluation and recipe.evaluation.patience:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience=recipe.evaluation.patience))
        self.add_callback(_Restart(starts))
        self.add_callback(_Progress(recipe))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Nothing: cards are written from provenance."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches in their planned order; each process reads its own part of every one."""
        return DataLoader(
            _Once(self.data),
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Linear warm-up and decay to the recipe's floor."""
        if self.lr_scheduler is None:
            self.lr_scheduler = linear_schedule(
                optimizer or self.optimizer,  # type: ignore[arg-type]
                warmup_steps=self.recipe.warmup_steps,
                total_steps=num_training_steps,
                floor=self.recipe.learning_rate_floor,
                starts=self.starts,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> Any:
        """The objective of one tokenised batch."""
        if self.step_loss.model is not model:  # as wrapped for several devices
            self.override_model_in_loss(self.step_loss, model)  # type: ignore[arg-type]
        try:
            loss = self.step_loss(inputs)
        except TrainingError as error:
            raise TrainingError(f"{error} It is {self._where(inputs)}.") from None
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One step of the stock trainer, checked before the optimiser moves."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._last = inputs
        if not torch.isfinite(loss):
            self._refuse(f"The loss is {loss.item()}", inputs)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm, checked before the optimiser moves: weights of the next checkpoint would not be numbers."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16 and not math.isfinite(norm):  # fp16 scales its loss by trial, and leaves such steps out
            self._refuse(f"The norm of the gradients is {float(norm)}", self._last)
        return norm

    def _refuse(self, what: str, inputs: dict[str, Any]) -> None:
        raise TrainingError(
            f"{what} {self._where(inputs)}; the last checkpoint is kept. Look at these examples, or try a lower "
            "learning_rate or a higher temperature."
        )

    def _where(self, inputs: dict[str, Any]) -> str:
        names = ", ".join(inputs["query_ids"][:NAMED_QUERIES])
        others = " and others" if len(inputs["query_ids"]) > NAMED_QUERIES else ""
        return f"at step {self.state.global_step + 1}, on queries {names}{others} of dataset {inputs['dataset']!r}"

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
        return str(checkpoints.writing_folder(self.recipe.out))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        if self.recipe.encoder.lora:
            load_adapters(getattr(self.model, "_orig_mod", self.model), Path(checkpoint_path))
        else:
            super()._load_from_checkpoint(checkpoint_path)

    def _load_best_model(self) -> None:
        """Fails where it cannot: the stock trainer would log that and keep the last weights, which are not the best."""
        best = str(self.state.best_model_checkpoint)
        checkpoints.check_checkpoint(Path(best))
        self._load_from_checkpoint(best)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        out, name = self.recipe.out, f"checkpoint-{self.state.global_step}"
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        if best:  # as the stock trainer would have named it, had the checkpoint been written in place
            self.state.best_model_checkpoint = str(checkpoints.checkpoint_folder(out) / best)
        if self.args.should_save:
            self.state.save_to_json(str(checkpoints.writing_folder(out) / name / STATE))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.place_checkpoint(out, name, best=best)
        self.accelerator.wait_for_everyone()


def training_arguments(recipe: TrainRecipe) -> SentenceTransformerTrainingArguments:
    """The stock trainer's settings for a recipe; `recipe.trainer` has the last word.

    Raises:
        RecipeError: a setting of `trainer` that there is not, or that the stock trainer refuses.
    """
    settings: dict[str, Any] = {
        "output_dir": str(checkpoints.checkpoint_folder(recipe.out)),
        "max_steps": recipe.steps,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": train_in_bf16(recipe.precision),
        # without it, processes on a machine without a GPU would not find each other
        "use_cpu": recipe.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        "seed": recipe.seed,
        "logging_steps": recipe.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": recipe.save_every,
        "save_total_limit": None,  # ours keeps the last two and the best, and never half of one
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # a model is called twice before its backward pass
        "dataloader_drop_last": True,  # every batch is whole; the stock trainer warns without it
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if recipe.encoder.two_encoders:
        settings["router_mapping"] = {kind: kind for kind in KINDS}  # asked for by the stock trainer, read by nobody
    if recipe.evaluation:
        settings |= {
            "eval_strategy": "steps",
            "eval_steps": recipe.evaluation.every,
            "save_steps": recipe.evaluation.every,
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{METRIC}",
            "greater_is_better": True,
            "restore_callback_states_from_checkpoint": True,  # patience is counted across kills
        }
    return trainer_arguments(SentenceTransformerTrainingArguments, settings, recipe.trainer)


def ran_out_of_patience(checkpoint: Path, recipe: TrainRecipe) -> int | None:
    """The step at which a run stopped for lack of progress, if its last checkpoint is from then; else None."""
    if recipe.evaluation is None or recipe.evaluation.patience is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    counted = (state.stateful_callbacks or {}).get(EarlyStoppingCallback.__name__, {}).get("attributes", {})
    stopped = counted.get("early_stopping_patience_counter", 0) >= recipe.evaluation.patience
    return state.global_step if stopped else None


class _Once(Dataset[Any]):
    """The whole run as one epoch, so that the stock trainer's own way to resume skips to the right batch."""

    def __init__(self, data: StepData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.data[number]


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


class _Restart(TrainerCallback):
    """The optimiser forgets what it has gathered where the schedule begins anew."""

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = frozenset(starts[1:])

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:  # noqa: ARG002
        if state.global_step in self.starts:
            optimizer.state.clear()


class _Progress(TrainerCallback):
    """The steady line and the log; in a resumed run the log goes on from the checkpoint's step."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self.recipe = recipe

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self.log = ProgressLog(checkpoints.log_file(self.recipe.out), self.recipe.steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Log at every checkpoint: the mean loss since the last line is not part of it, and would be lost."""
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        shown = {"loss", "grad_norm", "learning_rate", f"eval_{METRIC}", "eval_recall@100"}
        figures = {name.removeprefix("eval_"): value for name, value in (logs or {}).items() if name in shown}
        if figures and state.is_world_process_zero:
            self.log.record(state.global_step, **figures)
