"""A user's judgements, by whatever name a user has for a document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drama_models import Collection
from drama_models.errors import CollectionError
from training.specialise.judged import read_judged

DOCUMENT_OF = {
    "guide/install.md:0": "guide/install.md",
    "guide/install.md:1": "guide/install.md",
    "My%20notes.txt:0": "My%20notes.txt",
    "old/install.txt:0": "old/install.txt",
    "faq.jsonl#7:0": "faq.jsonl#7",
}


def lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in records))
    return path


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("guide/install.md", "guide/install.md"),
        ("guide/install", "guide/install.md"),
        ("install.md", "guide/install.md"),
        ("guide/install.md:1", "guide/install.md"),
        ("My notes.txt", "My%20notes.txt"),
        ("My notes", "My%20notes.txt"),
        ("7", "faq.jsonl#7"),
    ],
)
def test_a_document_has_several_names(name: str, document: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "q.jsonl", {"query": "how?", "documents": [name]}, "")
    judged = read_judged(file, "test", DOCUMENT_OF)
    assert judged.qrels == {"line-1": {document: 1}}
    assert judged.queries == {"line-1": "how?"}
    assert judged.unknown == []


def test_a_name_of_two_documents_is_asked_about(tmp_path: Path) -> None:
    file = lines(tmp_path / "q.jsonl", {"query": "how?", "documents": ["install"]})
    with pytest.raises(CollectionError, match=r"'install' may mean 'guide/install\.md' or 'old/install\.txt'"):
        read_judged(file, "test", DOCUMENT_OF)


def test_unknown_names_are_told_and_queries_without_a_document_left_out(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "q.jsonl", {"_id": "a", "query": "a?", "documents": ["7", "gone.md"]},
        {"_id": "b", "query": "b?", "documents": ["lost.md"]},
    )  # fmt: skip
    judged = read_judged(file, "test", DOCUMENT_OF)
    assert (judged.queries, judged.unknown) == ({"a": "a?"}, ["gone.md", "lost.md"])
    with pytest.raises(CollectionError, match=r"judges none of these documents relevant \(it names 'x'\).*guide/inst"):
        read_judged(lines(tmp_path / "n.jsonl", {"query": "x", "documents": ["x"]}), "test", DOCUMENT_OF)


def test_a_folder_brings_grades(tmp_path: Path) -> None:
    documents = [{"_id": key, "title": "", "text": "x"} for key in ("guide/install.md", "7")]
    qrels = {"dev": {"q": {"guide/install.md": 2, "7": 0}, "none": {"7": 0}}}
    Collection.write(tmp_path / "beir", documents, {"q": "how?", "none": "?"}, qrels)
    judged = read_judged(tmp_path / "beir", "dev", DOCUMENT_OF)
    assert judged.qrels == {"q": {"guide/install.md": 2, "faq.jsonl#7": 0}}
    with pytest.raises(CollectionError, match="it has the splits: dev"):
        read_judged(tmp_path / "beir", "test", DOCUMENT_OF)


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    file = lines(tmp_path / "q.jsonl", *({"_id": None, "query": f"{n}?", "documents": ["7"]} for n in range(2)))
    assert read_judged(file, "test", DOCUMENT_OF).queries == {"line-1": "0?", "line-2": "1?"}


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[1]",
        '{"query": "x"}',
        '{"query": 1, "documents": []}',
        "\udcff",
        '{"query": "x", "documents": ["7"], "n": ' + "9" * 5000 + "}",
        '{"query": "x", "documents": ' + "[" * 100_000,
        '{"query": " ", "documents": ["7"]}',
    ],
)
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_bytes(b'{"query": "a", "documents": ["7"]}\n' + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(CollectionError, match=r"q\.jsonl, line 2: expected \{\"query\""):
        read_judged(file, "test", DOCUMENT_OF)
    with pytest.raises(CollectionError, match="There are no judged queries at"):
        read_judged(tmp_path / "absent", "test", DOCUMENT_OF)
