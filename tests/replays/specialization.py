"""Specialisation fixtures against `drama_models` and `training`."""

from __future__ import annotations

from typing import Any

from drama_models.fusion import reciprocal_rank_fusion
from tests.replays.compare import Tolerance, equal

Case = dict[str, Any]


def fusion(case: Case, data: Case, tolerance: Tolerance) -> None:
    rankings = [dict(ranked) for ranked in case["lists"]]
    fused = reciprocal_rank_fusion(rankings, constant=case["constant"])
    equal([document for document, _ in fused], [document for document, _ in case["output"]], "order")
    tolerance.close([score for _, score in fused], [score for _, score in case["output"]], "scores")


KINDS = {
    "specialization_fusion": fusion,
}
