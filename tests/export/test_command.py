"""`python -m export` as its users type it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "export", *words], capture_output=True, text=True, cwd=ROOT)


def test_verify_prints_a_line_for_each_client(release_folder: Path) -> None:
    result = run("verify", "--release", str(release_folder))
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines()[2:]] == [
        "automodel",
        "sentence_transformers",
        "onnxruntime",
    ]


def test_release_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    result = run("release", "--retriever", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
