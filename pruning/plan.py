"""What a pruning run would make and need, before anything runs: `python -m pruning plan`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from drama_models.errors import RecipeError
from drama_models.recipe import load_recipe
from pruning.learn_masks import LearnMasksRecipe, LearnMasksSettings
from pruning.model_folder import read_config
from pruning.presets import recipe_path
from pruning.run import RunRecipe
from pruning.shape import BackboneShape, check_smaller

TRAINED_BYTES = 16  # a parameter in float32: weight, gradient, and Adam's two moments
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What to plan."""

    model: Path
    """Source folder; only its configuration is read."""
    target: str = "drama-base"
    """Name of a preset, or path of a recipe for `run` or for `learn-masks`."""


@dataclass(frozen=True)
class Plan:
    """Shapes of every stage, and what the stages cost."""

    origin: str
    """Where the target comes from."""
    source: BackboneShape
    expanded: BackboneShape | None
    """Shape after KV heads are expanded, None where they stay."""
    shallow: BackboneShape | None
    """Shape after layers are dropped, None where their gates are learned."""
    target: BackboneShape
    vocabulary: int
    tied: bool
    measuring_tokens: int
    """Read to decide which layers are dropped, and where gates start; 0 where that is all learned."""
    mask_tokens: int
    recover_tokens: int

    @property
    def trained(self) -> BackboneShape:
        """The shape that masks are learned on."""
        return self.shallow or self.expanded or self.source

    def lines(self) -> list[str]:
        """The plan as text."""
        stages = [
            ("source", self.source),
            ("expanded", self.expanded),
            ("shallow", self.shallow),
            ("target", self.target),
        ]
        rows = [_row(name, shape, self.vocabulary, tied=self.tied) for name, shape in stages if shape]
        memory = [
            (name, shape.total_parameters(self.vocabulary, tied=self.tied) * TRAINED_BYTES / GIB)
            for name, shape in (("learn-masks", self.trained), ("recover", self.target))
        ]
        head = f"{'':10}{'hidden':>8}{'layers':>8}{'heads':>7}{'KV':>5}{'inter':>8}{'non-embedding':>16}{'total':>16}"
        measuring = f"{self.measuring_tokens:,} to measure layers and units, " if self.measuring_tokens else ""
        return [
            f"target: {self.origin}",
            head,
            *rows,
            *(f"{name}: {size:.1f} GiB for weights, gradients and Adam, before activations" for name, size in memory),
            f"tokens: {measuring}{self.mask_tokens:,} to learn masks, {self.recover_tokens:,} to recover",
        ]


def plan(recipe: PlanRecipe) -> Plan:
    """Work out shapes, parameters, memory and tokens.

    Raises:
        ShapeError: a target that the source cannot be cut to, or that cuts nothing.
        RecipeError: no such preset, or a recipe that cannot be read.
        ModelFolderError: the folder has no configuration.
    """
    config = read_config(recipe.model)
    source = BackboneShape.of(config)
    wanted = read_run_recipe(recipe.target, recipe.model)
    expanded = replace(source, num_kv_heads=source.num_heads) if wanted.expands(source) else None
    masks, recovery = wanted.learn_masks, wanted.recover
    target = (expanded or source).cut_to(masks.target)
    shallow = replace(expanded or source, num_layers=target.num_layers) if wanted.drops_layers(source) else None
    check_smaller(shallow or expanded or source, target)
    drop = wanted.drop_layers if shallow else None
    dropping = drop.tokens(source.num_layers, target.num_layers) if drop else 0
    return Plan(
        origin=wanted.origin,
        source=source,
        expanded=expanded,
        shallow=shallow,
        target=target,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        measuring_tokens=dropping + masks.measuring_tokens(shallow or expanded or source),
        mask_tokens=masks.steps * masks.batch_size * masks.sequence_length,
        recover_tokens=recovery.steps * recovery.batch_size * recovery.sequence_length,
    )


def read_run_recipe(name: str, model: Path) -> RunRecipe:
    """Settings of a whole run from a preset's name, or from a recipe for `run` or for `learn-masks`.

    Raises:
        RecipeError: no such preset, or a recipe that cannot be read.
    """
    path = recipe_path(name)
    # neither shapes nor the token budget depend on where the other folders lie
    folders: dict[str, Any] = {"model": model, "corpus": Path("corpus"), "out": Path("out")}
    try:
        return load_recipe(RunRecipe, path, **folders)
    except RecipeError as error:
        try:
            learn = load_recipe(LearnMasksRecipe, path, **folders)
        except RecipeError:
            raise error from None
    settings = {field.name: getattr(learn, field.name) for field in fields(LearnMasksSettings)}
    return RunRecipe(origin=str(path), learn_masks=LearnMasksSettings(**settings), **folders)


def _row(name: str, shape: BackboneShape, vocabulary: int, *, tied: bool) -> str:
    sizes = f"{shape.hidden_size:8}{shape.num_layers:8}{shape.num_heads:7}{shape.num_kv_heads:5}"
    total = shape.total_parameters(vocabulary, tied=tied)
    return f"{name:10}{sizes}{shape.intermediate_size:8}{shape.non_embedding_parameters:16,}{total:16,}"
