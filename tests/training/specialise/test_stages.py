"""A stage is made once for the same job and outputs, and again where either has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.specialise.stages import RECORDS, Stages, content_hash


def test_a_stage_is_made_again_only_where_its_job_or_its_output_has_changed(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    calls: list[str] = []

    def make(text: str) -> dict[str, int]:
        calls.append(text)
        out.write_text(text, encoding="utf-8")
        return {"length": len(text)}

    def run(text: str) -> dict[str, int]:
        return Stages(tmp_path).run("write", {"text": text}, [out], lambda: make(text))

    assert [run("one"), run("one"), run("three"), run("three")] == [{"length": 3}] * 2 + [{"length": 5}] * 2
    assert calls == ["one", "three"]
    out.write_text("touched", encoding="utf-8")
    assert run("three") == {"length": 5}
    out.unlink()
    run("three")
    assert calls == ["one", "three", "three", "three"]


def test_a_stage_that_was_interrupted_is_made_again_and_starts_over_for_another_job(tmp_path: Path) -> None:
    out, log = tmp_path / "made", list[str]()

    def attempt(job: str, *, fails: bool) -> None:
        def make() -> None:
            log.append(job)
            if fails:
                raise OSError(job)
            out.mkdir(exist_ok=True)
            (out / "file").write_text(job, encoding="utf-8")

        stages = Stages(tmp_path)
        stages.run("train", {"job": job}, [out], make, start_over=lambda: log.append(f"over {job}"))
        assert stages.times["train"] >= 0

    with pytest.raises(OSError, match="a"):
        attempt("a", fails=True)
    attempt("a", fails=False)  # goes on with what the first left
    attempt("a", fails=False)
    with pytest.raises(OSError, match="b"):
        attempt("b", fails=True)
    attempt("b", fails=False)
    assert log == ["over a", "a", "a", "over b", "b", "b"]
    assert sorted(path.name for path in (tmp_path / RECORDS).iterdir()) == ["train.json"]


def test_a_stage_that_misses_something_is_made_again(tmp_path: Path) -> None:
    missing = [2, 0]

    def run() -> dict[str, int]:
        return Stages(tmp_path).run(
            "ask", {}, [], lambda: {"missing": missing.pop(0)}, complete=lambda made: not made["missing"]
        )

    assert [run() for _ in range(3)] == [{"missing": 2}, {"missing": 0}, {"missing": 0}]


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x", encoding="utf-8")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    assert content_hash(tmp_path / "a" / "x") == content_hash(tmp_path / "b" / "x")
    assert content_hash(tmp_path / "absent") is None
