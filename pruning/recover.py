"""Continued pretraining: bring a sliced model back, or start one from nothing.

The stock causal language-model objective on the stock Trainer; a randomly initialised folder is just another starting
folder. Sheared-LLaMA, section 2.2 (arXiv 2310.06694).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from pruning.corpus import Corpus
from pruning.dynamic_loading import proportion_updates
from pruning.held_out import held_out_figures
from pruning.language_modelling import (
    LanguageModellingRecipe,
    LanguageModelTrainer,
    checkpoint_folder,
    figures_before,
    last_complete_checkpoint,
)
from pruning.mixture import MixedSequences

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

LOG = "training_log.jsonl"


@dataclass(frozen=True, kw_only=True)
class RecoverRecipe(LanguageModellingRecipe):
    """Settings of continued pretraining."""

    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the weights in the made folder."""


def recover(recipe: RecoverRecipe) -> dict[str, Any]:
    """Train a causal language model on a corpus and write it as a new folder.

    Resumes at the last complete checkpoint of an interrupted run with the same `out`.

    Returns:
        The provenance record of the made folder; its figures are steps, tokens and the held-out loss by domain,
        before (for a run that did not resume) and after.

    Raises:
        CorpusError: corpus and model do not fit.
        TrainingError: the loss became non-finite.
    """
    corpus = Corpus.open(recipe.corpus)
    corpus.check_tokenizer(recipe.model)
    model = AutoModelForCausalLM.from_pretrained(recipe.model, dtype=torch.float32)
    data = MixedSequences(
        corpus, recipe.proportions, recipe.sequence_length, recipe.steps * recipe.batch_size, recipe.seed
    )
    trainer = LanguageModelTrainer(recipe, model, data, corpus)
    checkpoint = last_complete_checkpoint(recipe.out)
    if checkpoint is None:
        shutil.rmtree(checkpoint_folder(recipe.out), ignore_errors=True)
    before = figures_before(model, corpus, recipe)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    figures = {
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.batch_size * recipe.sequence_length,
        "epochs": data.epochs,
        "proportion_updates": proportion_updates(checkpoint_folder(recipe.out)),
        "held_out_before": before,
        "held_out": held_out_figures(model, corpus, **recipe.held_out),
    }
    return _write_folder(recipe, model, figures)


def _write_folder(recipe: RecoverRecipe, model: PreTrainedModel, figures: dict[str, Any]) -> dict[str, Any]:
    with atomic_folder(recipe.out) as partial:
        model.to(getattr(torch, recipe.save_dtype))
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(recipe.model).save_pretrained(partial)
        shutil.copy(checkpoint_folder(recipe.out) / "log.jsonl", partial / LOG)
        record = write_provenance(
            partial,
            stage="pruning.recover",
            recipe=recipe,
            inputs={"model": recipe.model, "corpus": recipe.corpus},
            figures=figures,
            parent=recipe.model,
        )
    shutil.rmtree(checkpoint_folder(recipe.out))
    return record


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a made folder's training log."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
