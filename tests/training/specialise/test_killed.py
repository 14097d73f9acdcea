"""A specialisation killed with SIGKILL in its stages and given again, against one that was left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drama_models.checkpoints import checkpoint_folder, checkpoints
from drama_models.folders import sha256_of_file
from tests.processes import finish, kill_when, start
from tests.training.specialise.documents import QUICK, write_manuals

ROOT = Path(__file__).parents[3]
OUT = Path("zoo")


def command(manuals: Path, model: Path) -> list[str]:
    settings = QUICK | {"epochs": 3, "documents": manuals, "model": model, "out": OUT}
    return ["training", "specialise", *(f"--{name}={value}" for name, value in settings.items())]


def began(stage: str) -> Callable[[], bool]:
    """Whether a stage is under way: it has a record without outputs."""
    path = OUT / ".stages" / f"{stage}.json"
    return lambda: path.is_file() and "outputs" not in json.loads(path.read_text(encoding="utf-8"))


def without_times(path: Path) -> Any:
    """What a file holds; of what it took, nothing."""
    if path.name == "findings.json":
        return json.loads(path.read_text(encoding="utf-8")) | {"times": {}}
    if path.name == "training_log.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: value for key, value in line.items() if key != "elapsed_s"} for line in lines]
    return sha256_of_file(path)


def final_files(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves behind, but its report, which shows times, and memory-mapped copies."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in paths if path.name != "report.html" and path.parts[:2] != ("work", "cache")]
    return {path.as_posix(): without_times(folder / path) for path in kept if not path.parts[0].startswith(".")}


@pytest.mark.slow
def test_a_killed_specialisation_ends_as_if_left_alone(
    retriever_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manuals = write_manuals(tmp_path / "manuals")
    words = command(manuals, retriever_folder)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    last = finish(start(*words, PYTHONPATH=str(ROOT)))
    monkeypatch.chdir(tmp_path / "cut")
    moments = [
        began("chunk"),
        began("mine-model"),
        began("filter"),
        lambda: len(checkpoints(OUT / "retriever")) > 1,
        lambda: (checkpoint_folder(OUT / "retriever") / ".writing" / "checkpoint-4").is_dir(),
        began("evaluate-held-out-after"),
    ]
    for happened in moments:
        kill_when(start(*words, PYTHONPATH=str(ROOT)), happened, timeout_s=900)
        assert not (OUT / "report.html").exists()
    assert finish(start(*words, PYTHONPATH=str(ROOT))) == last
    whole, cut = final_files(tmp_path / "whole" / OUT), final_files(tmp_path / "cut" / OUT)
    assert whole.keys() == cut.keys()
    assert {name: value for name, value in whole.items() if cut[name] != value} == {}
    assert {"findings.json", "retriever/model.safetensors", "runs/held-out-after.run"} < whole.keys()
    assert not list((tmp_path / "cut").rglob("*.partial-*"))
