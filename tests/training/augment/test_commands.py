"""The commands as a user gives them: from a folder of files to filtered examples, and one sentence for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drama_models.recipe import run_command
from tests.training.augment.chat_server import serving
from tests.training.augment.cross_encoders import write_cross_encoder
from training.augment.commands import COMMANDS
from training.data.examples import TrainingExample, read_examples, write_examples


def run(*words: object) -> int:
    return run_command("training", COMMANDS, [str(word) for word in words])


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Thirty short articles in two formats, one of them there twice."""
    folder = tmp_path / "docs"
    folder.mkdir()
    animals = ["owl", "fox", "bear", "carp", "wasp", "seal", "crow", "toad", "mole", "hare"]
    for number in range(30):
        name, place = animals[number % 10], ["river", "forest", "meadow"][number // 10]
        text = f"The {name} of the {place} sleeps by day and hunts by night. Its {name} song is heard near the {place}."
        if number % 2:
            (folder / f"{number}.md").write_text(f"# {name}\n\n{text}\n", encoding="utf-8")
        else:
            (folder / f"{number}.txt").write_text(text, encoding="latin-1")
    (folder / "copy.txt").write_text((folder / "0.txt").read_text().upper(), encoding="utf-16")
    return folder


def test_a_folder_becomes_filtered_examples(
    documents: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages, unique, crops = tmp_path / "passages", tmp_path / "unique", tmp_path / "crops.jsonl"
    assert run("chunk", "--documents", documents, "--model", llama_folder, "--out", passages) == 0
    assert (
        "31 passages of 31 documents, no file skipped; next: python -m training deduplicate" in capsys.readouterr().out
    )
    assert run("deduplicate", "--collection", passages, "--out", unique) == 0
    assert "30 passages, 1 removed" in capsys.readouterr().out
    assert run("crop", "--collection", unique, "--out", crops) == 0
    mined = tmp_path / "bm25.run"
    assert run("mine", "--collection", unique, "--examples", crops, "--out", mined, "--k", 25, "--workers", 2) == 0
    printed = capsys.readouterr().out.rpartition("next: python -m training ")[2].strip()
    assert (
        printed == f"rerank --collection {unique} --examples {crops} --run {mined} --cross_encoder MODEL --out RERANKED"
    )
    model, reranked = write_cross_encoder(tmp_path / "judge"), tmp_path / "reranked.run"
    assert run(*printed.replace("MODEL", str(model)).replace("RERANKED", str(reranked)).split()) == 0
    printed = capsys.readouterr().out.rpartition("next: python -m training ")[2].strip()
    by_hand = f"filter --collection {unique} --examples {crops} --retriever_run {mined} --teacher_run {reranked} --out"
    assert printed == f"{by_hand} FILTERED"
    runs = ("--retriever_run", mined, "--teacher_run", mined)
    folders = ("--collection", unique, "--examples", crops)
    assert run("filter", *folders, *runs, "--out", tmp_path / "filtered", "--length", 5, "--drop_weak", "false") == 0
    assert "found by the retriever: 0 dropped" in capsys.readouterr().out
    examples = list(read_examples(tmp_path / "filtered" / "examples.jsonl"))
    assert len(examples) >= 15
    assert all(len(example.negative_ids) == 4 for example in examples)


def test_a_recipe_file_is_read_and_the_endpoint_is_asked(
    documents: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("chunk", "--documents", documents, "--model", llama_folder, "--out", tmp_path / "passages")
    with serving(lambda _: "Who sleeps by day?") as server:
        recipe = {
            "collection": str(tmp_path / "passages"),
            "out": str(tmp_path / "made"),
            "kinds": ["question", "title"],
            "llm": {"url": server.url, "model": "tiny", "usd_per_million_prompt_tokens": 2.5},
            "sampling": {"temperature": 0.3},
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        assert run("generate", tmp_path / "recipe.yaml") == 0
        assert {body["temperature"] for body in server.bodies} == {0.3}
    shown = capsys.readouterr()
    assert "62 queries, 0 answers kept aside" in shown.out
    assert "step 62/62 | answers_per_s" in shown.err


def test_a_mistake_is_one_sentence_and_leaves_nothing(
    documents: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\x00")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "title.txt").write_bytes(b"=== user\ncaf\xe9 $passage")
    (tmp_path / "twice.jsonl").write_text('{"_id": "a", "text": "x"}\n' * 2, encoding="utf-8")
    run("chunk", "--documents", documents, "--model", llama_folder, "--out", tmp_path / "passages")
    capsys.readouterr()
    llm = ("--llm.url", "http://127.0.0.1:9/v1", "--llm.model", "m", "--llm.attempts", 1)
    out = ("--out", tmp_path / "out")
    chunk = ("chunk", "--model", llama_folder, *out, "--documents")
    crop = ("crop", "--collection", tmp_path / "passages", "--out")
    mistakes = [
        ((*chunk, tmp_path / "empty"), "holds no documents"),
        ((*chunk, tmp_path / "image.txt"), "1 files skipped (binary: image.txt)"),
        ((*chunk, tmp_path / "twice.jsonl"), "line 2: id 'a' was used in line 1"),
        (
            ("chunk", "--model", llama_folder, "--documents", documents, "--out", documents / "in" / "out"),
            "would be read as documents the next time; choose an --out elsewhere",
        ),
        (("deduplicate", "--collection", tmp_path / "empty", *out), "There is no corpus.jsonl"),
        (
            ("generate", "--collection", tmp_path / "passages", *llm, *out),
            "There is no answer from http://127.0.0.1:9/v1",
        ),
        (("generate", "--collection", tmp_path / "passages", *llm, *out, "--kinds", "[riddle]"), "kinds"),
        (("rerank", "--collection", tmp_path / "passages", "--run", tmp_path / "x", *out), "either llm"),
        (("mine", "--collection", tmp_path / "passages", "--teacher", tmp_path / "x", *out), "no"),
        (("augment", "--show"), "--show-prompts"),
        (("augment", "--show-prompts", tmp_path / "latin"), "title.txt, line 2: not text in UTF-8; save the file"),
        (("augment", "--show-prompts", tmp_path / "empty"), "is no folder of prompts"),
        ((*crop, tmp_path / "image.txt" / "out"), "image.txt cannot be used ("),
        ((*crop, tmp_path / "empty"), "empty cannot be used (Is a directory); check"),
    ]
    for words, message in mistakes:
        assert run(*words) == 2, words
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.startswith("error: ")
        assert "Traceback" not in shown.err
        assert not (tmp_path / "out").exists()
    assert not [path.name for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_line_that_never_ends_is_chunked(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "line.txt").write_text("no end " * 20_000 + "x" * 100_000, encoding="utf-8")
    settings = ("--max_tokens", 2048, "--min_tokens", 1)
    assert (
        run("chunk", "--documents", tmp_path / "docs", "--model", llama_folder, "--out", tmp_path / "out", *settings)
        == 0
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
@pytest.mark.parametrize("moment", ["while modules load", "while workers search"])
def test_ctrl_c_is_one_line_and_no_traceback(moment: str, collection_folder: Path, tmp_path: Path) -> None:
    examples = [
        TrainingExample(query_id=f"q{number}", query=f"join table {number} sort rows", positive_ids=["d1"])
        for number in range(40_000)
    ]
    write_examples(tmp_path / "examples.jsonl", examples)
    settings = {"collection": collection_folder, "examples": tmp_path / "examples.jsonl", "out": tmp_path / "run"}
    words = [f"--{name}={value}" for name, value in settings.items()]
    tells_of_imports = ["-X", "importtime"] if moment == "while modules load" else []
    command = [sys.executable, *tells_of_imports, "-m", "training", "mine", *words, "--k=90", "--workers=2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    if moment == "while workers search":
        while not list((tmp_path / ".run.parts").glob("*.run")):
            assert process.poll() is None
            time.sleep(0.001)
    else:
        assert process.stderr is not None
        assert any("drama_models.errors" in line for line in process.stderr)  # read up to there
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all processes
    told = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in told
    assert "KeyboardInterrupt" not in told
    assert not (tmp_path / "run").exists()
    if moment == "while workers search":
        assert told.splitlines()[-1] == "interrupted; the same command goes on at its last checkpoint"


def test_prompts_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "title.txt").write_text("=== user\nmine: $passage", encoding="utf-8")
    assert run("augment", "--show-prompts", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "mine: $passage" in shown
    assert "Order the $count passages by relevance" in shown
    assert str(sys.executable) not in shown


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "training", "augment", "--show-prompts"]
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
