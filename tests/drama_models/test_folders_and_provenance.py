"""Folders that are complete or absent, and the record of how they were made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from drama_models.folders import atomic_file, atomic_folder, inside, sha256_of_file, sha256_of_folder
from drama_models.progress import ProgressLog, format_seconds
from drama_models.provenance import chain, read_provenance, write_provenance


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with atomic_folder(target) as partial:
        (partial / "file").write_text("one", encoding="utf-8")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="interrupted"), atomic_folder(target) as partial:
        (partial / "file").write_text("two", encoding="utf-8")
        raise RuntimeError("interrupted")
    assert (target / "file").read_text(encoding="utf-8") == "one"
    with atomic_folder(target) as partial:
        (partial / "other").write_text("three", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".made.partial-12345").mkdir()
    with atomic_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


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
    assert inside(tmp_path, "a/b") == tmp_path.resolve() / "a" / "b"
    for name in ("../x", "/etc/passwd", "a/../../x"):
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


def test_progress_is_one_line_for_people_and_one_for_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ProgressLog(tmp_path / "log.jsonl", total=100, start=40)
    log.record(50, loss=0.41234, sparsity=0.5)
    line = capsys.readouterr().err
    assert line.startswith("step 50/100 | loss 0.4123 | sparsity 0.5 | ")
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8"))["loss"] == 0.41234
    assert [format_seconds(value) for value in (5, 200, 3840)] == ["5s", "3m20s", "1h04m"]
