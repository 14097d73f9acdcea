"""Shipped recipes are read by the classes they are for, and ask for what their model can give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoConfig

from demo.stages import RECIPES, SOURCE
from drama_models.recipe import load_recipe, run_command
from export.__main__ import COMMANDS as EXPORT
from export.release import ReleaseRecipe
from pruning.__main__ import COMMANDS as PRUNING
from pruning.learn_masks import LearnMasksRecipe
from pruning.recover import RecoverRecipe
from pruning.shape import BackboneShape
from training.__main__ import COMMANDS as TRAINING
from training.recipe import TrainRecipe

if TYPE_CHECKING:
    from pathlib import Path

CLASSES: dict[str, Any] = {
    "learn_masks.yaml": LearnMasksRecipe,
    "recover.yaml": RecoverRecipe,
    "release.yaml": ReleaseRecipe,
    "source.yaml": RecoverRecipe,
    "train.yaml": TrainRecipe,
}
ROOMS: dict[str, Any] = {"export": EXPORT, "pruning": PRUNING, "training": TRAINING}
WITH_RECIPE = [(room, command) for room, commands in ROOMS.items() for command in commands if command != "augment"]


def test_every_shipped_recipe_is_tested() -> None:
    assert {path.name for path in RECIPES.iterdir()} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_recipe_is_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(CLASSES[name], RECIPES / name, out=tmp_path)
    assert recipe.out == tmp_path
    assert (RECIPES / name).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(("room", "command"), WITH_RECIPE)
def test_every_command_knows_the_types_of_its_fields(
    room: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it does not, it takes any text for them, and says so in its help."""
    with pytest.raises(SystemExit):
        run_command(room, ROOMS[room], [command, "--help"])
    told = capsys.readouterr().out
    assert "type: " in told
    assert "Unvalidated" not in told


def test_the_chain_fits_together() -> None:
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    masks = load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml")
    backbone = source.cut_to(masks.target)
    train = load_recipe(TrainRecipe, RECIPES / "train.yaml")
    assert train.objective.dims[0] == backbone.hidden_size
    assert list(train.objective.dims) == sorted(train.objective.dims, reverse=True)
    release_length = load_recipe(ReleaseRecipe, RECIPES / "release.yaml").max_length
    assert release_length is not None
    assert release_length >= train.encoder.max_length
    assert 0.4 < parameters(backbone) / parameters(source) < 0.6  # "about half"


def test_the_source_model_saw_ten_tokens_for_every_parameter() -> None:
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    recipe = load_recipe(RecoverRecipe, RECIPES / "source.yaml")
    assert recipe.steps * recipe.batch_size * recipe.sequence_length >= 10 * parameters(source)
    assert sum(path.stat().st_size for path in SOURCE.iterdir()) <= 25e6


def parameters(shape: BackboneShape) -> int:
    """Without the embedding matrix."""
    heads, kv_heads = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = shape.hidden_size * (2 * heads + 2 * kv_heads + 3 * shape.intermediate_size + 2)
    return shape.num_layers * layer + shape.hidden_size
