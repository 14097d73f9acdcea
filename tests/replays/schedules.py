"""Learning-rate schedules against `training.schedules`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.schedules import SPECIALISATION_FLOOR, learning_rate_factor, specialisation_steps

if TYPE_CHECKING:
    from tests.replays.compare import Tolerance

Case = dict[str, Any]


def dragon(case: Case, data: Case, tolerance: Tolerance) -> None:
    given = case["input"]
    rates = [
        given["base_lr"]
        * learning_rate_factor(step, warmup_steps=given["warmup_steps"], total_steps=given["total_steps"])
        for step in given["steps"]
    ]
    tolerance.close(rates, case["output"]["lr"], "rates")


def specialisation(case: Case, data: Case, tolerance: Tolerance) -> None:
    warmup, total = specialisation_steps(case["micro_batches_per_epoch"], case["accumulation_steps"], case["epochs"])
    rates = [
        case["base_lr"] * learning_rate_factor(step, warmup_steps=warmup, total_steps=total, floor=SPECIALISATION_FLOOR)
        for step in case["steps"]
    ]
    tolerance.close(rates, case["lr"], "rates")


KINDS = {"dragon_lr_schedule": dragon, "specialization_lr_schedule": specialisation}
