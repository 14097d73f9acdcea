"""What a pruning run would make and need, before anything runs: `python -m pruning plan`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from drama_models.errors import ShapeError
from drama_models.recipe import load_recipe
from pruning.learn_masks import LearnMasksRecipe
from pruning.presets import PRESETS
from pruning.recover import RecoverRecipe
from pruning.shape import BackboneShape

TRAINED_BYTES = 16  # a parameter in float32: weight, gradient, and Adam's two moments
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What to plan."""

    model: Path
    """Source folder; only its configuration is read."""
    target: str = "drama-base"
    """Name of a preset, or path of a learn-masks recipe."""
    recover_recipe: Path | None = None
    """Recipe of the recovery stage, for its token budget; Sheared-LLaMA's by default."""


@dataclass(frozen=True)
class Plan:
    """Shapes of every stage, and what the stages cost."""

    origin: str
    """Where the target comes from."""
    source: BackboneShape
    expanded: BackboneShape | None
    """Shape after KV heads are expanded, None where they stay."""
    target: BackboneShape
    vocabulary: int
    tied: bool
    mask_tokens: int
    recover_tokens: int

    @property
    def trained(self) -> BackboneShape:
        """The shape that masks are learned on."""
        return self.expanded or self.source

    def lines(self) -> list[str]:
        """The plan as text."""
        stages = [("source", self.source), ("expanded", self.expanded), ("target", self.target)]
        rows = [_row(name, shape, self.vocabulary, tied=self.tied) for name, shape in stages if shape]
        memory = [
            (name, shape.total_parameters(self.vocabulary, tied=self.tied) * TRAINED_BYTES / GIB)
            for name, shape in (("learn-masks", self.trained), ("recover", self.target))
        ]
        head = f"{'':10}{'hidden':>8}{'layers':>8}{'heads':>7}{'KV':>5}{'inter':>8}{'non-embedding':>16}{'total':>16}"
        return [
            f"target: {self.origin}",
            head,
            *rows,
            *(f"{name}: {size:.1f} GiB for weights, gradients and Adam, before activations" for name, size in memory),
            f"tokens: {self.mask_tokens:,} to learn masks, {self.recover_tokens:,} to recover",
        ]


def plan(recipe: PlanRecipe) -> Plan:
    """Work out shapes, parameters, memory and tokens.

    Raises:
        ShapeError: no such preset or recipe, or a target that the source cannot be cut to.
        RecipeError: a recipe that cannot be read.
        ModelFolderError: the folder has no configuration.
    """
    config: Any = AutoConfig.from_pretrained(recipe.model)
    source = BackboneShape.of(config)
    expanded = None
    # the token budget does not depend on where folders lie
    folders: dict[str, Any] = {"model": recipe.model, "corpus": Path("corpus"), "out": Path("out")}
    if recipe.target in PRESETS:
        preset = PRESETS[recipe.target]
        origin, wanted = f"{recipe.target} ({preset.source})", preset.target
        if preset.multi_head and source.num_kv_heads != source.num_heads:
            expanded = replace(source, num_kv_heads=source.num_heads)
        masks = LearnMasksRecipe(target=wanted, **folders)
    elif Path(recipe.target).is_file():
        masks = load_recipe(LearnMasksRecipe, Path(recipe.target), **folders)
        origin, wanted = recipe.target, masks.target
    else:
        raise ShapeError(
            f"There is no preset and no recipe file called {recipe.target!r}; presets: {', '.join(PRESETS)}."
        )
    recovery = (
        load_recipe(RecoverRecipe, recipe.recover_recipe, **folders)
        if recipe.recover_recipe
        else RecoverRecipe(steps=48_000, batch_size=256, warmup_steps=1440, **folders)
    )
    return Plan(
        origin=origin,
        source=source,
        expanded=expanded,
        target=(expanded or source).cut_to(wanted),
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        mask_tokens=masks.steps * masks.batch_size * masks.sequence_length,
        recover_tokens=recovery.steps * recovery.batch_size * recovery.sequence_length,
    )


def _row(name: str, shape: BackboneShape, vocabulary: int, *, tied: bool) -> str:
    sizes = f"{shape.hidden_size:8}{shape.num_layers:8}{shape.num_heads:7}{shape.num_kv_heads:5}"
    total = shape.total_parameters(vocabulary, tied=tied)
    return f"{name:10}{sizes}{shape.intermediate_size:8}{shape.non_embedding_parameters:16,}{total:16,}"
