"""The pruning stage: learn which units go, together with the weights that stay, under the size constraint.

One AdamW: weights at the usual rate, log_alphas at rate 1, multipliers ascending at rate 1, the linear ones at a share
of it where a recipe asks for that; one cosine schedule multiplies all rates (spec section 5). The made folder holds the
full-size weights and `masks.safetensors`; `pruning.slicing` cuts it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from drama_models.checkpoints import LOG, claim, keep_log, last_checkpoint, remove_checkpoints
from drama_models.errors import ModelFolderError, TrainingError
from drama_models.folders import atomic_folder
from drama_models.model_folder import read_json
from drama_models.provenance import read_provenance, write_provenance
from drama_models.recipe import check_least
from pruning.corpus import Corpus
from pruning.distributed import whole_model
from pruning.held_out import held_out_figures
from pruning.importance import ImportanceSettings, start_from_importance
from pruning.lagrangian import overall_sparsity
from pruning.language_modelling import (
    LanguageModellingRecipe,
    LanguageModellingSettings,
    LanguageModelTrainer,
    train,
)
from pruning.masked_model import MaskedCausalLM
from pruning.masks import Masks
from pruning.model_folder import load_causal_model, load_stock_tokenizer, read_config
from pruning.plots import PLOT, plot_expected_sizes
from pruning.shape import BackboneShape, TargetShape, check_smaller

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerControl, TrainerState, TrainingArguments

Gates = Literal["soft", "hard"]
MASKS = "masks.safetensors"
LEAST = {
    "sparsity_warmup_steps": 0, "mask_learning_rate": 0, "multiplier_learning_rate": 0, "linear_multiplier_factor": 0,
}  # fmt: skip
"""Smallest value of each number; no field is infinite."""
TOLERANCE = 0.05  # of a dimension's source size: how far its expected size may miss the target


@dataclass(frozen=True, kw_only=True)
class LearnMasksSettings(LanguageModellingSettings):
    """Settings of mask learning; defaults from Sheared-LLaMA (arXiv 2310.06694) and LLM-Shearing."""

    target: TargetShape = field(default_factory=TargetShape)
    """Sizes to end on."""
    steps: int = 3200
    """Optimiser steps."""
    warmup_steps: int = 320
    """Steps over which the rate rises from zero."""
    sparsity_warmup_steps: int = 640
    """Steps over which the targets rise from zero to their final sparsity."""
    mask_learning_rate: float = 1.0
    """Of the log_alphas."""
    multiplier_learning_rate: float = 1.0
    """Of the Lagrange multipliers, which ascend."""
    linear_multiplier_factor: float = 1.0
    """Share of that rate for the multipliers of the linear terms. In a run of a few hundred steps they climb until
    sizes swing far past their targets; 0.1 leaves the lead to the quadratic terms, which pull back."""
    importance: ImportanceSettings | None = None
    """How gates are measured, to start in the order of their importance and at the target sizes; by default all start
    open. `sparsity_warmup_steps: 0` goes with it: there is nothing to warm up to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, LEAST)
        asked = [name for name, value in self.trainer.items() if value and name.endswith("_checkpointing")]
        if asked and self.trainer.get("torch_compile"):
            raise ValueError(f"{asked[0]} and torch_compile do not go together under masks; leave one out of trainer.")

    def measuring_tokens(self, source: BackboneShape) -> int:
        """Tokens of a source of this shape that are read before the first step."""
        return self.importance.tokens(source, source.cut_to(self.target)) if self.importance else 0


@dataclass(frozen=True, kw_only=True)
class LearnMasksRecipe(LearnMasksSettings, LanguageModellingRecipe):
    """Settings of mask learning with its folders."""


class MaskTrainer(LanguageModelTrainer):
    """Language-model trainer with a rate for each kind of parameter."""

    model: MaskedCausalLM

    def __init__(self, recipe: LearnMasksRecipe, model: MaskedCausalLM, corpus: Corpus) -> None:
        source, target = model.masks.source, model.masks.target
        targets = {name: float(target) for name, (_, target) in model.masks.expected_sizes().items()}
        targets["sparsity"] = 1 - target.prunable_parameters / source.prunable_parameters
        super().__init__(recipe, model, corpus, targets)
        self.recipe = recipe
        self.add_callback(_MaskSteps(model))

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """The optimiser of this stage."""
        self.optimizer = mask_optimizer(self.model, self.recipe)
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the expected size of every masked dimension, that of all together, and the penalty, beside the loss."""
        masks = self.model.masks
        expected = {name: size for name, (size, _) in masks.expected_sizes().items()}
        scores = {name: score.detach().cpu() for name, score in masks.scores().items()}
        expected["sparsity"] = overall_sparsity(scores, masks.source).item()
        super().log(logs | expected | {"penalty": self.model.penalty}, *args, **kwargs)


def mask_optimizer(model: MaskedCausalLM, recipe: LearnMasksRecipe) -> torch.optim.AdamW:
    """AdamW over weights, gates (descending) and multipliers (ascending), each group with its own rate."""
    rate = recipe.multiplier_learning_rate
    linear, quadratic = (list(each.parameters()) for each in (model.lagrangian.lambda_1, model.lagrangian.lambda_2))
    groups: list[dict[str, Any]] = [
        {"params": list(model.model.parameters()), "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": list(model.masks.parameters()), "lr": recipe.mask_learning_rate},
        {"params": linear, "lr": rate * recipe.linear_multiplier_factor, "maximize": True},
        {"params": quadratic, "lr": rate, "maximize": True},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, recipe.adam_beta2), eps=1e-8, weight_decay=0.0)


def learn_masks(recipe: LearnMasksRecipe) -> dict[str, Any]:
    """Learn masks on a corpus and write weights and masks as a new folder.

    Resumes at the last checkpoint of an interrupted run with the same `out`. Under torchrun every process calls this
    and the main one writes.

    Returns:
        The provenance record; its figures hold every dimension's expected size beside its target.

    Raises:
        ShapeError: a target the source cannot be cut to, or that cuts nothing.
        CorpusError: corpus and model do not fit.
        ModelFolderError: the model is not whole.
        TrainingError: the loss became non-finite, an interrupted run had other settings or left a damaged checkpoint,
            or another run is making the same folder.
    """
    with claim(recipe.out):
        return _learn_masks(recipe)


def _learn_masks(recipe: LearnMasksRecipe) -> dict[str, Any]:
    source = BackboneShape.of(read_config(recipe.model))
    target = source.cut_to(recipe.target)
    check_smaller(source, target)
    corpus = Corpus.open(recipe.corpus)
    corpus.check_tokenizer(recipe.model)
    tokenizer = load_stock_tokenizer(recipe.model)

    def make() -> MaskedCausalLM:
        return MaskedCausalLM(
            load_causal_model(recipe.model), Masks(source, target, recipe.seed), recipe.sparsity_warmup_steps
        )

    model = make()
    trainer = MaskTrainer(recipe, model, corpus)
    _measure(recipe, trainer, corpus)
    trained = train(recipe, trainer, model.model, corpus)
    whole = whole_model(trainer, model, make)
    if trainer.args.should_save:
        whole.masks.clamp()
        figures = {
            "measuring_tokens": recipe.measuring_tokens(source),
            "held_out_before": trained.before,
            "proportion_updates": trained.updates,
            "held_out_under_masks": held_out_figures(whole, corpus, **recipe.held_out),
        }
        _write_folder(recipe, whole, tokenizer, figures)
    trainer.accelerator.wait_for_everyone()
    return read_provenance(recipe.out) or {}


def load_masks(folder: Path, *, force: bool = False, gates: Gates = "soft") -> dict[str, torch.Tensor]:
    """Deterministic masks, cut to the target, of a folder that `learn_masks` made.

    Args:
        folder: the made folder.
        force: cut even if a dimension's expected size is not near its target.
        gates: value of a kept gate: `soft`, as learned and as in LLM-Shearing, or `hard`, 1. After a long run kept
            gates are close to 1; after a few hundred steps not all are, and soft values shrink weights that stay.
            `python -m benchmarks.pruning_quality --methods learned "soft gates"` compares the two.

    Raises:
        ModelFolderError: no masks in this folder, or damaged ones.
        TrainingError: the masks have not converged; the message says by how much each dimension misses.
    """
    if not (folder / "masks.json").is_file():
        raise ModelFolderError(f"{folder} has no masks.json; pass a folder made by `python -m pruning learn-masks`.")
    try:
        record = read_json(folder / "masks.json")
        masks = Masks(BackboneShape(**record["source"]), BackboneShape(**record["target"]))
        state = load_file(folder / MASKS)
        for name, log_alpha in masks.log_alpha.items():
            log_alpha.data.copy_(state[f"log_alpha.{name}"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFolderError(f"The masks in {folder} are damaged ({reason}); run learn-masks again.") from None
    missed = {
        name: f"{name} expects {expected:.1f}, target {wanted}"
        for name, (expected, wanted) in masks.expected_sizes().items()
        if abs(expected - wanted) > TOLERANCE * masks.log_alpha[name].shape[-1]
    }
    if missed and not force:
        raise TrainingError(
            f"The masks in {folder} have not converged: {'; '.join(missed.values())}. "
            "Set more steps or a shorter sparsity_warmup_steps, or slice with --force."
        )
    values = masks.deterministic(at_target=True)
    return values if gates == "soft" else {name: (value != 0).to(value.dtype) for name, value in values.items()}


def _measure(recipe: LearnMasksRecipe, trainer: MaskTrainer, corpus: Corpus) -> None:
    """Let gates start from their importance where the recipe asks for that; a checkpoint has the gates already."""
    if recipe.importance is not None and last_checkpoint(recipe.out) is None:
        model = trainer.model.to(trainer.args.device)
        start_from_importance(model, corpus, recipe.importance, recipe.seed)


def _write_folder(recipe: LearnMasksRecipe, model: MaskedCausalLM, tokenizer: Any, figures: dict[str, Any]) -> None:
    masks = model.masks
    state = {f"log_alpha.{name}": value.detach().contiguous() for name, value in masks.log_alpha.items()}
    for order, multipliers in (("1", model.lagrangian.lambda_1), ("2", model.lagrangian.lambda_2)):
        state |= {f"lambda_{order}.{name}": value.detach() for name, value in multipliers.items()}
    sizes = {
        name: {"expected": expected, "target": wanted} for name, (expected, wanted) in masks.expected_sizes().items()
    }
    with atomic_folder(recipe.out) as partial:
        model.model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_file(state, partial / MASKS)
        shapes = {"source": asdict(masks.source), "target": asdict(masks.target)}
        (partial / "masks.json").write_text(json.dumps(shapes, indent=2) + "\n", encoding="utf-8")
        keep_log(recipe.out, partial)
        targets = {name: float(size["target"]) for name, size in sizes.items()}
        plot_expected_sizes(partial / LOG, targets, partial / PLOT)
        write_provenance(
            partial,
            stage="pruning.learn_masks",
            recipe=recipe,
            inputs={"model": recipe.model, "corpus": recipe.corpus},
            figures={"expected_sizes": sizes} | figures,
            parent=recipe.model,
        )
    remove_checkpoints(recipe.out)


class _MaskSteps(TrainerCallback):
    """Tells the constraint how far its warm-up is, also after a resume, and keeps gates in their range.

    Forward passes clamp too, but under FSDP what they see is a copy.
    """

    def __init__(self, model: MaskedCausalLM) -> None:
        self.model = model
        model.masks.clamp()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.model.step.fill_(state.global_step)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.model.masks.clamp()
