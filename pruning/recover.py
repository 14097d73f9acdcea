"""Continued pretraining: bring a sliced model back, or start one from nothing.

The stock causal language-model objective on the stock Trainer; a randomly initialised folder is just another starting
folder. Sheared-LLaMA, section 2.2 (arXiv 2310.06694).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from drama_models.checkpoints import claim, keep_log, remove_checkpoints
from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_folder
from drama_models.provenance import read_provenance, write_provenance
from pruning.corpus import Corpus
from pruning.distillation import distillation_loss
from pruning.distributed import whole_model
from pruning.held_out import held_out_figures
from pruning.language_modelling import (
    LanguageModellingRecipe,
    LanguageModellingSettings,
    LanguageModelTrainer,
    train,
)
from pruning.model_folder import load_causal_model, load_stock_tokenizer
from pruning.packing import share_of_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class RecoverSettings(LanguageModellingSettings):
    """Settings of continued pretraining."""

    updates_before_training: ClassVar[bool] = True
    steps: int = 48_000
    """Optimiser steps."""
    batch_size: int = 256
    """Sequences in an optimiser step on one device."""
    warmup_steps: int = 1440
    """Steps over which the rate rises from zero."""
    update_every: int = 400
    """Steps between updates of the shares."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the weights in the made folder."""
    teacher: Path | None = None
    """Model with the same tokenizer, such as the unpruned source, whose logits are learned too; beyond the papers."""
    distillation_weight: float = 0.5
    """With a teacher: share of the loss that the divergence from its logits has; the rest is the cross-entropy."""
    distillation_temperature: float = 1.0
    """With a teacher: both distributions are softened by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distillation_weight <= 1 or self.distillation_temperature <= 0:
            raise ValueError(
                f"distillation_weight={self.distillation_weight} must be between 0 and 1 and "
                f"distillation_temperature={self.distillation_temperature} above 0."
            )


@dataclass(frozen=True, kw_only=True)
class RecoverRecipe(RecoverSettings, LanguageModellingRecipe):
    """Settings of continued pretraining with its folders."""


class DistillationTrainer(LanguageModelTrainer):
    """Language-model trainer whose loss is part cross-entropy, part divergence from a teacher's logits."""

    def __init__(self, recipe: RecoverRecipe, model: PreTrainedModel, corpus: Corpus, teacher: PreTrainedModel) -> None:
        super().__init__(recipe, model, corpus)
        self.recipe = recipe
        self.teacher = teacher.eval().to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of both, scaled like the stock loss over accumulated batches and processes."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            text = {name: value for name, value in inputs.items() if name != "labels"}
            logits = self.teacher(**text, use_cache=False).logits
        divergence = distillation_loss(outputs.logits, logits, inputs["labels"], self.recipe.distillation_temperature)
        share = share_of_step(inputs["labels"], num_items_in_batch) * self.accelerator.num_processes
        weight = self.recipe.distillation_weight
        loss = (1 - weight) * loss + weight * divergence * share
        return (loss, outputs) if return_outputs else loss


def recover(recipe: RecoverRecipe) -> dict[str, Any]:
    """Train a causal language model on a corpus and write it as a new folder.

    Resumes at the last checkpoint of an interrupted run with the same `out`. Under torchrun every process calls this
    and the main one writes.

    Returns:
        The provenance record of the made folder; its figures are steps, tokens and the held-out loss by domain,
        before and after.

    Raises:
        CorpusError: corpus and model do not fit.
        ModelFolderError: a model that is not whole, or a teacher with another vocabulary.
        TrainingError: the loss became non-finite, an interrupted run had other settings or left a damaged checkpoint,
            or another run is making the same folder.
    """
    with claim(recipe.out):
        return _recover(recipe)


def _recover(recipe: RecoverRecipe) -> dict[str, Any]:
    corpus = Corpus.open(recipe.corpus)
    corpus.check_tokenizer(recipe.model)
    model, tokenizer = load_causal_model(recipe.model), load_stock_tokenizer(recipe.model)
    trainer = _trainer(recipe, model, corpus)
    trained = train(recipe, trainer, model, corpus)
    config = AutoConfig.from_pretrained(recipe.model)
    whole = whole_model(trainer, model, lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    if trainer.args.should_save:
        figures = {
            "steps": recipe.steps,
            "tokens": len(trainer.data) * recipe.sequence_length,
            "epochs": trained.epochs,
            "proportion_updates": trained.updates,
            "held_out_before": trained.before,
            "held_out": held_out_figures(whole, corpus, **recipe.held_out),
        }
        _write_folder(recipe, whole, tokenizer, figures)
    trainer.accelerator.wait_for_everyone()
    return read_provenance(recipe.out) or {}


def _trainer(recipe: RecoverRecipe, model: PreTrainedModel, corpus: Corpus) -> LanguageModelTrainer:
    if recipe.teacher is None:
        return LanguageModelTrainer(recipe, model, corpus)
    corpus.check_tokenizer(recipe.teacher)
    teacher = load_causal_model(recipe.teacher)
    if teacher.config.vocab_size != model.config.vocab_size:
        raise ModelFolderError(
            f"The teacher {recipe.teacher} has {teacher.config.vocab_size} logits, {recipe.model} "
            f"{model.config.vocab_size}; use the model that was pruned, or leave `teacher` out."
        )
    return DistillationTrainer(recipe, model, corpus, teacher)


def _write_folder(recipe: RecoverRecipe, model: PreTrainedModel, tokenizer: Any, figures: dict[str, Any]) -> None:
    with atomic_folder(recipe.out) as partial:
        model.to(getattr(torch, recipe.save_dtype))
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        keep_log(recipe.out, partial)
        write_provenance(
            partial,
            stage="pruning.recover",
            recipe=recipe,
            inputs={"model": recipe.model, "corpus": recipe.corpus}
            | ({"teacher": recipe.teacher} if recipe.teacher else {}),
            figures=figures,
            parent=recipe.model,
        )
    remove_checkpoints(recipe.out)
