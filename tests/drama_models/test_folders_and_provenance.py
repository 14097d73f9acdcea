"""Folders that are complete or absent, and the record of how they were made."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from drama_models.errors import ModelFolderError, OutputError
from drama_models.folders import atomic_file, atomic_folder, inside, read_whole, sha256_of_file, sha256_of_folder
from drama_models.progress import ProgressLog, format_seconds
from drama_models.provenance import chain, read_provenance, write_provenance


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with atomic_folder(target, scratch=True) as partial:
        (partial / "file").write_text("one", encoding="utf-8")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="interrupted"), atomic_folder(target, scratch=True) as partial:
        (partial / "file").write_text("two", encoding="utf-8")
        raise RuntimeError("interrupted")
    assert (target / "file").read_text(encoding="utf-8") == "one"
    with atomic_folder(target, scratch=True) as partial:
        (partial / "other").write_text("three", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


WRITER = """
import sys, time
from pathlib import Path
from drama_models import folders
target, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "file":
    with folders.atomic_file(target) as partial:
        partial.write_text("half", encoding="utf-8")
        time.sleep(600)
if kind == "between":  # the old folder is out of the way, the new one not yet in place
    folders._exchange = lambda *_: False  # as where the system cannot
    (target.parent / "half").mkdir()
    rename, Path.rename = Path.rename, lambda path, to: rename(path, to) if path == target else wait(path, to)
    def wait(path, to):
        if not to.exists():
            time.sleep(600)
        return rename(path, to)
with folders.atomic_folder(target, scratch=True) as partial:
    (partial / "one").write_text("half", encoding="utf-8")
    if kind == "nested":
        with folders.atomic_folder(partial, scratch=True):
            time.sleep(600)
    if kind == "folder":
        time.sleep(600)
"""


@contextmanager
def writer(target: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of writing; killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target), kind])
    try:
        until = time.monotonic() + 60
        sign = {"between": "replaced", "nested": "partial-*.partial"}.get(kind, "partial")
        while not list(target.parent.glob(f".*.{sign}-{process.pid}-*")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.wait()


def write(target: Path, kind: str) -> None:
    with atomic_file(target) if kind == "file" else atomic_folder(target, scratch=True) as partial:
        (partial if kind == "file" else partial / "two").write_text("whole", encoding="utf-8")


@pytest.mark.parametrize("kind", ["file", "folder", "nested"])
def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(
    kind: str, tmp_path: Path
) -> None:
    target = tmp_path / "made [1]"
    foreign = tmp_path / f".{target.name}.partial-1-another-machine"  # whose processes cannot be asked for here
    foreign.mkdir()
    with writer(target, kind) as process:
        write(target, kind)
        assert len(list(tmp_path.glob(f".*.partial-{process.pid}-*"))) == 1 + (kind == "nested")
    left = {path.name for path in tmp_path.iterdir()} - {target.name, foreign.name}
    assert len(left) == 1 + (kind == "nested")
    write(tmp_path / "made", kind)  # another name
    assert left < {path.name for path in tmp_path.iterdir()}
    write(target, kind)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "made", foreign.name}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_can_be_read_by_whoever_may_read_the_folder(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "made") as partial:
            save_file({"a": np.zeros(3, dtype=np.float32)}, partial / "model.safetensors")
            assert (partial / "model.safetensors").stat().st_mode & 0o777 == 0o600
            (partial / "script").touch(mode=0o755)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"model.safetensors": 0o666 & ~umask, "script": 0o755 & ~umask}


def test_what_somebody_else_keeps_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    with atomic_folder(target) as partial:  # empty, so nothing is lost
        (partial / "provenance.json").write_text("{}", encoding="utf-8")
    with atomic_folder(target) as partial:
        (partial / "letter").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match="holds something else"), atomic_folder(target):
        pass
    (target / "corpus.jsonl").touch()  # a collection of somebody's own, and a stage's folder
    with pytest.raises(OutputError, match="holds something else"), atomic_folder(target) as partial:
        (partial / "provenance.json").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}
    with pytest.raises(OutputError, match="is a file where a folder"), atomic_folder(target / "letter"):
        pass
    assert (target / "letter").read_text(encoding="utf-8") == "dear"
    (tmp_path / "link").symlink_to(target)
    with atomic_folder(tmp_path / "link", scratch=True) as partial:
        (partial / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_folder_that_a_killed_writer_had_set_aside_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "made"
    write(target, "folder")
    with writer(target, "between"):
        pass
    assert not target.exists()
    with pytest.raises(RuntimeError, match="no success"), atomic_folder(target, scratch=True):
        raise RuntimeError("no success")
    assert [path.name for path in target.iterdir()] == ["two"]
    assert {path.name for path in tmp_path.iterdir()} == {"made", "half"}


def test_processes_that_write_the_same_folder_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    code = """
import sys
from drama_models.folders import atomic_folder
for number in range(100):
    with atomic_folder(sys.argv[1], scratch=True) as partial:
        for name in ("a", "b"):
            (partial / name).write_text(f"{sys.argv[2]} {number}", encoding="utf-8")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "made")]
    processes = [subprocess.Popen([*words, name]) for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    first, second = ((tmp_path / "made" / name).read_text(encoding="utf-8") for name in ("a", "b"))
    assert first == second
    assert first.endswith(" 99")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder takes two renames to replace")
def test_a_folder_that_is_replaced_is_never_gone(tmp_path: Path) -> None:
    target = tmp_path / "made"
    write(target, "folder")
    code = """
import sys
from drama_models.folders import atomic_folder
for _ in range(500):
    with atomic_folder(sys.argv[1], scratch=True) as partial:
        (partial / "two").touch()
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(target)])
    seen = set()
    while process.poll() is None:
        seen.add((target / "two").exists())
    assert process.returncode == 0
    assert seen == {True}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_is_read_again_where_it_was_replaced_and_its_errors_are_its_own(tmp_path: Path) -> None:
    target, reads = tmp_path / "made", 0

    def read() -> str:
        nonlocal reads
        reads += 1
        if reads < 3:
            write(target, "folder")
        if reads == 2:
            raise ValueError("half")
        return (target / "two").read_text(encoding="utf-8")

    assert read_whole([target], read, OutputError) == "whole"
    assert reads == 3
    with pytest.raises(OutputError, match=r"made was replaced each of the \d+ times that it was opened"):
        read_whole([target], lambda: write(target, "folder"), OutputError)
    with pytest.raises(ZeroDivisionError):
        read_whole([target], lambda: 1 / 0, OutputError)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_file(target) as partial:
        partial.write_text("one", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_file(target) as partial:
        partial.write_text("two", encoding="utf-8")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_hashes_follow_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"data" * 500_000)
    assert sha256_of_file(tmp_path / "a" / "x") == hashlib.sha256(b"data" * 500_000).hexdigest()
    first = sha256_of_folder(tmp_path / "a")
    (tmp_path / "a" / ".hidden").write_text("ignored", encoding="utf-8")
    assert sha256_of_folder(tmp_path / "a") == first
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert sha256_of_folder(tmp_path / "a") != first


def test_names_from_input_stay_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b..c") == tmp_path / "a" / "b..c"
    for name in ("../x", "/etc/passwd", "a/../../x", "..\\x", "x\0"):
        with pytest.raises(ValueError, match="leads out of"):
            inside(tmp_path, name)


@dataclass
class Recipe:
    """Settings of a made-up stage."""

    model: Path
    steps: int


def test_provenance_chains_back_to_the_source(tmp_path: Path) -> None:
    for name in ("source", "backbone", "retriever"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name, encoding="utf-8")
    source, backbone = tmp_path / "source", tmp_path / "backbone"
    write_provenance(
        backbone,
        stage="pruning",
        recipe=Recipe(source, 3),
        inputs={"model": source},
        figures={"loss": 1.5},
        parent=source,
    )
    record = write_provenance(
        tmp_path / "retriever", stage="training", recipe={}, inputs={"backbone": backbone}, figures={}, parent=backbone
    )
    assert [stage["stage"] for stage in chain(record)] == ["pruning", "training"]
    assert read_provenance(source) is None
    stored = json.loads((tmp_path / "retriever" / "provenance.json").read_text(encoding="utf-8"))
    assert stored == record
    assert stored["parent"]["figures"] == {"loss": 1.5}
    assert stored["parent"]["inputs"]["model"] == {"name": "source", "sha256": sha256_of_folder(source)}
    assert {"python", "torch", "transformers"} <= set(stored["versions"])


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, '{"figures": ' + "1" * 5_000 + "}"])
def test_a_damaged_record_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"provenance\.json is damaged"):
        read_provenance(tmp_path)


def test_an_input_that_is_not_there_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="someone/model"):
        write_provenance(tmp_path, stage="pruning.slice", recipe={}, inputs={"model": "someone/model"}, figures={})


def test_progress_is_one_line_for_people_and_one_for_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ProgressLog(tmp_path / "log.jsonl", total=100, start=40)
    log.record(50, loss=0.41234, sparsity=0.5)
    line = capsys.readouterr().err
    assert line.startswith("step 50/100 | loss 0.4123 | sparsity 0.5 | ")
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["loss"] == 0.41234
    assert [format_seconds(value) for value in (5, 200, 3840)] == ["5s", "3m20s", "1h04m"]
