"""`make demo` makes what is missing, goes on where it stopped, and leaves a complete result alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import demo.__main__ as demo
from demo.stages import RECIPES, STAGES
from drama_models.errors import TrainingError
from tests.demo.test_metrics_and_report import metrics_with

if TYPE_CHECKING:
    from collections.abc import Callable

METRICS = metrics_with(0.2, 0.1) | {"onnx": {"max_abs_difference": 1e-7}}


class Chain:
    """Three stages that write down when they run; the middle one can be told to fail."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.key = "same"
        self.ran: list[str] = []
        self.failure: BaseException | None = None
        monkeypatch.setattr(demo, "OUT", out)
        monkeypatch.setattr(demo, "STAGES", {name: self._stage(name) for name in ("one", "two", "three")})
        monkeypatch.setattr(demo, "_key", lambda: self.key)
        monkeypatch.setattr(demo, "measure", lambda _: (dict(METRICS), {}))
        monkeypatch.setattr(demo, "write_report", lambda out, *_: (out / "report.html").write_text("page"))
        monkeypatch.setattr(demo, "drama", lambda _: 0)

    def _stage(self, name: str) -> Callable[[Path], None]:
        def make(out: Path) -> None:
            """Make a folder."""
            self.ran.append(name)
            if name == "two" and self.failure:
                raise self.failure
            out.mkdir()

        return make


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    return Chain(tmp_path / "out", monkeypatch)


def test_a_second_run_changes_nothing_and_says_so(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    files = {path: path.stat().st_mtime_ns for path in demo.OUT.rglob("*")}
    assert chain.ran == ["one", "two", "three"]
    assert demo.main() == 0
    assert chain.ran == ["one", "two", "three"]
    assert {path: path.stat().st_mtime_ns for path in demo.OUT.rglob("*")} == files
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("failure", "code"), [(KeyboardInterrupt(), 130), (TrainingError("The loss is nan."), 2)])
def test_an_interrupted_run_goes_on(
    chain: Chain, failure: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chain.failure = failure
    assert demo.main() == code
    assert "Traceback" not in capsys.readouterr().err
    chain.failure = None
    assert demo.main() == 0
    assert chain.ran == ["one", "two", "two", "three"]
    metrics = json.loads((demo.OUT / "metrics.json").read_text())
    assert set(metrics["seconds"]) == {"one", "two", "three", "evaluate"}


def test_changed_settings_start_afresh(chain: Chain) -> None:
    assert demo.main() == 0
    chain.key = "other"
    assert demo.main() == 0
    assert chain.ran == 2 * ["one", "two", "three"]


def test_the_key_follows_the_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    before: Any = demo._key()
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    monkeypatch.setattr(demo, "RECIPES", recipes)
    assert demo._key() == before
    (recipes / "train.yaml").write_text("steps: 1\n")
    assert demo._key() != before


def test_every_stage_says_what_it_makes() -> None:
    assert list(STAGES)[:3] == ["collection", "corpus", "masks"]
    assert all(make.__doc__ for make in STAGES.values())
