"""Learning-rate schedules against `training.schedules`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.recipe import load_recipe
from training.recipe import TrainRecipe
from training.schedules import learning_rate_factor

if TYPE_CHECKING:
    from tests.replays.compare import Tolerance

Case = dict[str, Any]
RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "specialisation.yaml"


def dragon(case: Case, data: Case, tolerance: Tolerance) -> None:
    given = case["input"]
    rates = [
        given["base_lr"]
        * learning_rate_factor(step, warmup_steps=given["warmup_steps"], total_steps=given["total_steps"])
        for step in given["steps"]
    ]
    tolerance.close(rates, case["output"]["lr"], "rates")


def specialisation(case: Case, data: Case, tolerance: Tolerance) -> None:
    recipe = load_recipe(TrainRecipe, RECIPE, out=Path("unused"))
    epoch = case["micro_batches_per_epoch"] // case["accumulation_steps"]  # what is left of an epoch is dropped
    warmup, total = max(recipe.warmup_steps, epoch // 2), epoch * case["epochs"]  # as docs/training.md has it set
    rates = [
        case["base_lr"]
        * learning_rate_factor(step, warmup_steps=warmup, total_steps=total, floor=recipe.learning_rate_floor)
        for step in case["steps"]
    ]
    tolerance.close(rates, case["lr"], "rates")


KINDS = {"dragon_lr_schedule": dragon, "specialization_lr_schedule": specialisation}
