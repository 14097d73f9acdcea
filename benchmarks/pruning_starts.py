"""Ways to a model of the demo's target shape that learn no masks: starts for `benchmarks.pruning_quality`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from demo.stages import RECIPES, SOURCE
from drama_models.errors import TrainingError
from drama_models.recipe import load_recipe
from pruning.corpus import Corpus
from pruning.importance import start_from_importance
from pruning.learn_masks import LearnMasksRecipe
from pruning.masked_model import MaskedCausalLM
from pruning.masks import Masks, mask_shapes
from pruning.shape import BackboneShape
from pruning.slicing import slice_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor


def chosen_masks(scores: dict[str, Tensor], target: BackboneShape, layers: Tensor) -> dict[str, Tensor]:
    """Masks of ones and zeros: the given layers, and in every layer the units with the highest scores.

    Args:
        scores: of each gate by dimension, shapes as in `pruning.masks`.
        target: shape to keep.
        layers: indices of the layers to keep.
    """
    keep = {"hidden": target.hidden_size, "head": target.num_kv_heads, "intermediate": target.intermediate_size}
    values = {"layer": torch.zeros_like(scores["layer"]).index_fill(0, layers, 1.0)}
    for name, count in keep.items():
        top = scores[name].topk(count, dim=-1).indices
        values[name] = torch.zeros_like(scores[name]).scatter(-1, top, 1.0)
    return values


def magnitudes(shape: BackboneShape) -> dict[str, Tensor]:
    """Sum of squares of all weights that each gate would remove."""
    state = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).state_dict()
    scores = {name: torch.zeros(size) for name, size in mask_shapes(shape).items()}
    scores["hidden"] += state["model.embed_tokens.weight"].square().sum(0)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        squares = {
            name.removeprefix(prefix).rpartition(".")[0]: weight.square()
            for name, weight in state.items()
            if name.startswith(prefix) and weight.ndim == 2
        }
        for name, square in squares.items():
            is_output = name.endswith(("o_proj", "down_proj"))
            scores["hidden"] += square.sum(1 if is_output else 0)
            units = square.sum(0 if is_output else 1)
            if name.startswith("self_attn"):
                scores["head"][layer] += units.unflatten(0, (shape.num_kv_heads, -1)).sum(1)
            else:
                scores["intermediate"][layer] += units
    return scores


def important(recipe: LearnMasksRecipe, masks: Masks) -> dict[str, Tensor]:
    """Masks of ones and zeros from the importance of the source's units, before any is learned."""
    if recipe.importance is None:
        raise TrainingError("The recipe of the masks measures no importance; there is nothing to choose by.")
    model = MaskedCausalLM(AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32), masks, 0)
    start_from_importance(model, Corpus.open(recipe.corpus), recipe.importance, recipe.seed)
    return {name: (value != 0).float() for name, value in masks.deterministic(at_target=True).items()}


def write_start(method: str, out: Path, seed: int, model: Path) -> None:
    """Folder in the target's shape by one of the methods that learn no masks, cut from a model."""
    source = BackboneShape.of(AutoConfig.from_pretrained(model))
    learn = load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml", seed=seed)
    target = source.cut_to(learn.target)
    if method == "importance":
        slice_folder(model, important(learn, Masks(source, target)), out, {"method": method, "seed": seed})
        return
    if method == "magnitude":
        layers = torch.linspace(0, source.num_layers - 1, target.num_layers).round().long()
        slice_folder(model, chosen_masks(magnitudes(source), target, layers), out, {"method": method})
        return
    scores, layers = random_choice(source, target, seed)
    slice_folder(model, chosen_masks(scores, target, layers), out, {"method": method, "seed": seed})
    if method == "random start":
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out)).save_pretrained(out)
        AutoTokenizer.from_pretrained(SOURCE).save_pretrained(out)


def random_choice(source: BackboneShape, target: BackboneShape, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Scores of each gate by dimension, and the numbers of the layers to keep."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(size, generator=generator) for name, size in mask_shapes(source).items()}
    return scores, torch.randperm(source.num_layers, generator=generator)[: target.num_layers].sort().values


def drawn_masks(layers: Tensor, seed: int) -> dict[str, Tensor]:
    """Masks of ones and zeros: the given layers of the source, and units drawn as by `random choice`."""
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    target = source.cut_to(load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml").target)
    return chosen_masks(random_choice(source, target, seed)[0], target, layers)


def dropped_by_random_choice(seeds: Iterable[int]) -> dict[str, list[int]]:
    """Numbers of the layers that each seed leaves out."""
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    target = source.cut_to(load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml").target)
    kept = {seed: random_choice(source, target, seed)[1].tolist() for seed in seeds}
    return {str(seed): sorted(set(range(source.num_layers)) - set(layers)) for seed, layers in kept.items()}
