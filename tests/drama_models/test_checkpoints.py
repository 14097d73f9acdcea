"""Checkpoints on disk: one run at a time, and nothing damaged is gone on with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drama_models.checkpoints import claim
from drama_models.errors import TrainingError

HOLD = "import sys; from pathlib import Path; from drama_models.checkpoints import claim\n"
HOLD += "with claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


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
