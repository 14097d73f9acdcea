"""The reference implementations' numbers: every fixture case is a test, every kind without code an expected failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import replay

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.json"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixture_is_reproduced(path: Path) -> None:
    if path.stem not in replay.KINDS:
        pytest.xfail(f"{path.stem} is not covered yet")
    differing = [f"{name}: {difference}" for name, difference in replay.replay(path) if difference]
    assert not differing, "\n".join(differing)


def test_there_are_fixtures_and_every_covered_kind_has_one() -> None:
    assert len(FIXTURES) >= 45
    assert {path.stem for path in FIXTURES} >= set(replay.KINDS)


def test_replay_reports_a_case_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (FIXTURES[0].parent / "pruning_shapes.json").read_text(encoding="utf-8")
    (tmp_path / "pruning_shapes.json").write_text(text.replace("113265408", "113265409"), encoding="utf-8")
    (tmp_path / "unheard_of.json").write_text("{}", encoding="utf-8")
    assert replay.main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "pruning_shapes[2]" in printed
    assert "113265409" in printed
    assert "not covered: unheard_of" in printed
    assert printed.splitlines()[-1] == "3 passed, 1 failed"


def test_a_gate_that_nothing_cuts_and_a_start_sparsity_are_replayed(tmp_path: Path) -> None:
    data = json.loads((FIXTURES[0].parent / "pruning_optimizer.json").read_text(encoding="utf-8"))
    (case,) = data["cases"]
    case["config"]["target"]["layers"] = case["config"]["layers"]
    case["start_sparsity"] = 0.1
    first = case["history"][0]
    case["history"] = [first]  # multipliers start at 0: no loss, logits stay
    assert max(first["expected"].values()) < case["start_sparsity"]
    first["target"] = dict.fromkeys(first["target"], case["start_sparsity"])
    for name in first["lambdas_after"]:  # Adam's first step is the sign of the gradient: of the gap, and of its square
        first["lambdas_after"][name] = -1.0 if name.startswith("lambda_1") else 1.0
    (tmp_path / "pruning_optimizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert [difference for _, difference in replay.replay(tmp_path / "pruning_optimizer.json")] == [None]
