"""Lone surrogates in a collection: every stage makes what it makes of the same one with U+FFFD in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from drama_models.errors import CollectionError
from drama_models.recipe import run_command
from tests.training.augment.chat_server import ChatServer, serving
from training.augment.commands import COMMANDS
from training.data.examples import read_examples

TEXT = (
    "Where does the {} live? The {} of the \ud800 river sleeps by day. Its \udfff song is heard \ud83e\udd89 at night."
)
RECORDS = [
    {
        "_id": f"\ud800{name}",
        "title": f"The \udc00 {name}",
        "text": TEXT.format(name, name),
        "metadata": {"m": "\ud801"},
    }
    for name in ("owl", "fox", "bear", "carp", "wasp", "seal")
]
STAGES = {
    "crop": ["crop"],
    "find": ["find"],
    "generate": ["generate", "--kinds=[question]", "--llm.model=m"],
    "mine": ["mine", "--k=4", "--workers=1"],
    "mine with an encoder": ["mine", "--k=4", "--teacher=demo/nano"],
    "mine for examples": ["mine", "--k=4", "--workers=1", "--examples=examples.jsonl"],
    "deduplicate": ["deduplicate"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    """Answers with a lone surrogate too."""
    with serving(lambda _: "What does the \ud800 animal do by day?") as served:
        yield served


def files(folder: Path) -> dict[str, str]:
    """Everything that was made, but for what names the folder, and a cache of answers."""
    made = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in made
        if "provenance" not in path.name and ".answers" not in path.name
    }


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_stage_makes_of_surrogates_what_it_makes_of_their_replacement(
    stage: str, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Path.cwd()
    made = {}
    for name in ("lone", "replaced"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("demo").symlink_to(repository / "demo")
        examples = [
            {"query_id": f"q{record['_id']}", "query": record["title"], "positive_ids": [record["_id"]]}
            for record in RECORDS
        ]
        queries = [{"_id": each["query_id"], "text": each["query"]} for each in examples]
        Path("collection").mkdir()
        for path, records in (
            ("collection/corpus.jsonl", RECORDS), ("collection/queries.jsonl", queries), ("examples.jsonl", examples)
        ):  # fmt: skip
            lines = "".join(f"{json.dumps(record)}\n" for record in records)
            if name == "replaced":
                for code in ("\\ud800", "\\ud801", "\\udc00", "\\udfff"):
                    lines = lines.replace(code, "\\ufffd")
            Path(path).write_text(lines, encoding="utf-8")
        words = [*STAGES[stage], "--collection=collection", "--out=made/out"]
        words += [f"--llm.url={server.url}"] if stage == "generate" else []
        assert run_command("training", COMMANDS, words) == 0
        made[name] = files(Path("made"))
    assert made["lone"] == made["replaced"]
    assert any("\ufffd" in content for content in made["lone"].values())
    assert not any(code in content for content in made["lone"].values() for code in ("\\ud800", "\\udc00"))


def test_examples_with_surrogates_or_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    record = {
        "query_id": "\ud800",
        "query": "\ud83e\udd89 \udc00",
        "positive_ids": ["\ud801"],
        "scores": {"\ud801": 1.0},
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    (example,) = read_examples(path)
    assert (example.query_id, example.query) == ("\ufffd", "🦉 \ufffd")
    assert (example.positive_ids, example.scores) == (["\ufffd"], {"\ufffd": 1.0})
    path.write_bytes(b'{"query_id": "\xe9"}')
    with pytest.raises(CollectionError, match=r"examples\.jsonl, line 1: not a training example \(.*utf-8"):
        list(read_examples(path))
