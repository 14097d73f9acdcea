"""Checkpoints on disk: one run at a time, and nothing damaged is gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from drama_models.checkpoints import begin, checkpoint_folder, checkpoints, claim, place_checkpoint, writing_folder
from drama_models.errors import TrainingError
from drama_models.progress import ProgressLog

HOLD = "import sys; from pathlib import Path; from drama_models.checkpoints import claim\n"
HOLD += "with claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@dataclass(frozen=True)
class Recipe:
    """Settings of a run."""

    steps: int = 8


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a run was interrupted behind its checkpoint of step 4, the second."""
    out = tmp_path / "made"
    begin(out, Recipe())
    for step in (2, 4):
        written = writing_folder(out) / f"checkpoint-{step}"
        (written / "tower").mkdir(parents=True)
        (written / "optimizer.pt").write_bytes(b"moments")
        (written / "tower" / "model.safetensors").write_bytes(b"weights")
        place_checkpoint(out, written.name)
    return out


@pytest.mark.parametrize("name", ["optimizer.pt", "tower/model.safetensors", "files.json"])
@pytest.mark.parametrize("content", [b"", b"weightz", b"[]", b"\xff", None])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    out: Path, name: str, content: bytes | None
) -> None:
    begin(out, Recipe())
    path = checkpoints(out)[-1] / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    way_out = r"is missing or damaged; remove .*\.made\.checkpoints/checkpoint-4 to go on from the one before it, or"
    with pytest.raises(TrainingError, match=f"checkpoint-4/{name} {way_out} .*checkpoints to start over"):
        begin(out, Recipe())
    checkpoints(out)[-1].rename(checkpoint_folder(out) / "checkpoint-4.damaged")
    begin(out, Recipe())
    assert [folder.name for folder in checkpoints(out)] == ["checkpoint-2"]


@pytest.mark.parametrize("settings", ["{", "8", None])
def test_settings_that_cannot_be_read_are_named(out: Path, settings: str | None) -> None:
    path = checkpoint_folder(out) / "recipe.json"
    path.unlink()
    if settings is not None:
        path.write_text(settings, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"recipe\.json is missing or damaged; remove .*checkpoints to start over"):
        begin(out, Recipe())


def test_lines_of_a_log_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}).encode() for step in (1, 2, 3)]
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"\n".join([lines[0], b"\0\xff", b'{"loss": 1}', b"[]", lines[1], lines[2], b'{"st']))
    ProgressLog(log, total=8, start=2)
    assert log.read_bytes().splitlines() == lines[:2]


def test_a_folder_has_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs" / "made"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=r"Another run is making .*made; wait for it, or choose another folder"):
            claim(out).__enter__()
        with claim(tmp_path / "runs" / "another"):
            pass
        with monkeypatch.context() as second:
            second.setenv("RANK", "1")  # it trains together with the one that holds the folder
            with claim(out):
                pass
        other.kill()
    with claim(out):
        pass
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_that_failed_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claim(tmp_path / "made"):
        raise KeyError
    with claim(tmp_path / "made"):
        pass
