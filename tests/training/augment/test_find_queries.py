"""Found queries: what a person would pick from a page, by hand; nothing of it left in the passages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drama_models import Collection
from tests.training.augment.test_commands import run
from training.augment.chunk import ChunkRecipe, chunk
from training.augment.find_queries import FindRecipe, find_queries
from training.augment.read_documents import titled_blocks
from training.data.examples import TrainingExample, read_examples

STATEMENT = "It is filled with oil up to the second mark before the motor runs."
PUMP = f"""# Pump manual

Why does a cold pump hum at all? {STATEMENT} Is that so? And does it matter?

## Introduction

The pump of this manual is made of iron and runs for ten years.

## 2.1 Changing the oil

Turn the screw until all of the oil has left it. {STATEMENT}

## How often is the filter cleaned?

It is cleaned in every month in which the pump has run.
"""


def found(collection: Path, out: Path, **changes: Any) -> tuple[list[TrainingExample], dict[str, Any]]:
    record = find_queries(FindRecipe(collection=collection, out=out, **changes))
    return list(read_examples(out / "examples.jsonl")), record["figures"]


def test_a_folder_of_pages_gives_the_queries_that_stand_in_it(llama_folder: Path, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "pump.md").write_text(PUMP, encoding="utf-8")
    (pages / "wiring plan.txt").write_text("The wiring plan\n\nRed goes to the left, blue goes to the right.\n")
    (pages / "x17.txt").write_text("A text without any title that is worth the name of one.\n")
    for number in range(3):
        (pages / f"{number}.html").write_text(f"<h1>Introduction</h1><p>Page {number} of the book begins here.</p>")
    chunk(ChunkRecipe(documents=pages, model=llama_folder, out=tmp_path / "passages", min_tokens=1))
    examples, figures = found(tmp_path / "passages", tmp_path / "found", min_words=1)
    assert {example.query: (example.task, example.positive_ids) for example in examples} == {
        "Pump manual": ("title", ["pump.md:0"]),
        "Why does a cold pump hum at all?": ("question", ["pump.md:0"]),
        "Changing the oil": ("heading", ["pump.md:2"]),
        "How often is the filter cleaned?": ("question", ["pump.md:3"]),
        "The wiring plan": ("title", ["wiring%20plan.txt:0"]),
    }
    assert {example.source for example in examples} == {"found"}
    assert len({example.query_id for example in examples}) == 5
    assert figures["kept"] == {"title": 2, "question": 2, "heading": 1}
    assert figures["dropped"] == {
        "in more than 3 documents": 4,
        "too short": 1,
        "no answer behind it": 1,
        "name of a file": 1,
    }
    before = {document.id: document for document in Collection(tmp_path / "passages").documents()}
    after = {document.id: document for document in Collection(tmp_path / "found").documents()}
    assert list(after) == list(before)
    assert {document.title for document in after.values()} == {""}
    assert after.pop("pump.md:0").text == f"{STATEMENT} Is that so? And does it matter?"
    assert all(document.text == before[key].text for key, document in after.items())
    assert all(example.query not in document.content for example in examples for document in after.values())


def test_records_of_a_collection_are_documents_of_their_own(tmp_path: Path) -> None:
    records = [
        {"_id": "a", "title": "The grey seal", "text": "It sleeps by day and hunts by night near the coast."},
        {"_id": "b", "title": "the  grey SEAL", "text": "Again it sleeps."},
        {"_id": "c", "title": "1999", "text": "Where does it sleep by day?"},
        {"_id": "d", "title": "", "text": "它在哪里睡觉？它白天在海边的岩石上睡觉，晚上在水里捕食。"},
        {"_id": "e", "title": "Words " * 40, "text": "Long ago."},
    ]
    Collection.write(tmp_path / "in", records)
    examples, figures = found(tmp_path / "in", tmp_path / "out", language="zh", min_question_words=3)
    assert [(example.query, example.query_id) for example in examples] == [
        ("The grey seal", "a:found-title"), ("它在哪里睡觉？", "d:found-question0")
    ]  # fmt: skip
    assert figures["dropped"] == {"duplicate": 1, "too short": 1, "no answer behind it": 1, "too long": 1}
    assert {document.id: document.text for document in Collection(tmp_path / "out").documents()} == {
        record["_id"]: record["text"].removeprefix("它在哪里睡觉？") for record in records
    }
    shared, figures = found(tmp_path / "in", tmp_path / "out", max_documents=1, kinds=("title",))
    assert shared == []
    assert figures["dropped"]["in more than 1 documents"] == 2


def test_a_text_file_is_titled_by_a_short_first_line_alone() -> None:
    assert titled_blocks("\n Oil  change \n\nTurn the screw.")[0] == "Oil change"
    for text in (
        "Oil change",
        "Oil change\ngoes on here\n\nmore",
        "Turn the screw.\n\nmore",
        "word " * 13 + "\n\nmore",
    ):
        title, blocks = titled_blocks(text)
        assert title == ""
        assert not any(block.heading for block in blocks)


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Collection.write(tmp_path / "in", [{"_id": "a", "title": "The grey seal", "text": "It sleeps by day."}])
    assert run("find", "--collection", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "1 titles, and the passages without them (left out: none); next: python -m training mine" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="the defaults are 8 and 3"):
        FindRecipe(collection=tmp_path, out=tmp_path, max_documents=0)
    with pytest.raises(ValueError, match="try 2 and 4"):
        FindRecipe(collection=tmp_path, out=tmp_path, kinds=())
