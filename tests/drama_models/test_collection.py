"""Collections: what is written comes back, and every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from drama_models.collection import Collection
from drama_models.errors import CollectionError

DOCUMENTS = [{"_id": "1", "title": "one", "text": "first"}, {"_id": "два", "title": "", "text": "line\u2028break"}]
QUERIES = {"q1": "which is first?", "q2": "unanswered"}
QRELS = {"test": {"q1": {"1": 2, "два": 0}}, "dev": {"q1": {"два": 1}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Collection.write(tmp_path / "c", DOCUMENTS, QUERIES, QRELS)
    return tmp_path / "c"


def test_what_is_written_comes_back(folder: Path) -> None:
    collection = Collection(folder)
    documents = list(collection.documents())
    assert [(document.id, document.title, document.text) for document in documents] == [
        ("1", "one", "first"),
        ("два", "", "line\u2028break"),
    ]
    assert [document.content for document in documents] == ["one first", "line\u2028break"]
    assert collection.queries() == QUERIES
    assert collection.qrels("test") == QRELS["test"]
    assert collection.splits() == ["dev", "test"]
    assert collection.count() == 2


def test_gzip_files_read_the_same(folder: Path) -> None:
    expected = list(Collection(folder).documents()), Collection(folder).qrels("test")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    assert (list(Collection(folder).documents()), Collection(folder).qrels("test")) == expected
    assert Collection(folder).splits() == ["dev", "test"]


def damaged(packed: bytes) -> list[bytes]:
    """None at all, cut, a bit flipped in its checksum, a block of a kind that there is not."""
    return [b"plain", packed[:-9], packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:], packed[:10] + b"\x07" * 20]


@pytest.mark.parametrize("fault", range(4))
@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_damaged_gzip_file_is_named(folder: Path, name: str, fault: int) -> None:
    packed = damaged(gzip.compress((folder / name).read_bytes()))[fault]
    (folder / name).unlink()
    (folder / f"{name}.gz").write_bytes(packed)
    collection, message = Collection(folder), rf"{name}\.gz is not a whole gzip file .*; fetch or pack it again"
    with pytest.raises(CollectionError, match=message):
        collection.qrels("test")
    if name == "corpus.jsonl":
        for read in (collection.count, lambda: list(collection.documents()), lambda: list(collection.records())):
            with pytest.raises(CollectionError, match=message):
                read()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "3", "text": "cut', r"corpus\.jsonl, line 3: not valid JSON"),
        ('{"text": "no id"}', r"corpus\.jsonl, line 3: expected an object with a string `_id`"),
        ('{"_id": 3, "text": "number"}', r"line 3: expected an object with a string `_id`"),
        ('["a list"]', r"line 3: expected an object"),
        (f'{{"_id": "3", "text": "", "views": {"9" * 5_000}}}', r"corpus\.jsonl, line 3: not valid JSON"),
        (f'{{"_id": "3", "text": "", "tree": {"[" * 200_000 + "]" * 200_000}}}', r"line 3: not valid JSON"),
        ('{"_id": "3"}', r"line 3: `title` and `text` must be strings"),
        ('{"_id": "1", "text": "again"}', r"line 3: id '1' was used in line 1"),
    ],
)
def test_a_faulty_corpus_line_is_named(folder: Path, line: str, message: str) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CollectionError, match=message):
        list(Collection(folder).documents())


def test_lone_surrogates_are_read_as_the_replacement_character(folder: Path) -> None:
    owl = {"_id": "\ud800", "title": "\ud83e\udd89", "text": "lone \udc00", "metadata": {"\udfff": ["\ud801", 7]}}
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(owl) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q\\ud800", "text": "\\udc00?"}\n', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q\ufffd\t\ufffd\t1\r\n", encoding="utf-8")
    collection = Collection(folder)
    *_, document = collection.documents()
    assert (document.id, document.content) == ("\ufffd", "🦉 lone \ufffd")
    *_, record = collection.records()
    assert record["metadata"] == {"\ufffd": ["\ufffd", 7]}
    assert collection.queries() == {"q\ufffd": "\ufffd?"}
    assert collection.qrels("test") == {"q\ufffd": {"\ufffd": 1}}
    again = Collection.write(folder.parent / "again", collection.records(), collection.queries())
    assert list(again.documents()) == list(collection.documents())
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(owl | {"_id": "\udfff"}) + "\n")
    with pytest.raises(CollectionError, match="line 4: id '\ufffd' was used in line 3"):
        list(collection.documents())


def test_a_line_that_is_not_utf8_is_named(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write('{"_id": "3", "text": "é"}\n'.encode("latin-1"))
    with pytest.raises(
        CollectionError, match=r"corpus\.jsonl, line 3: not valid JSON \(.*; each line must be .* UTF-8"
    ):
        list(Collection(folder).documents())
    with (folder / "qrels" / "test.tsv").open("ab") as file:
        file.write("q1\té\t1\n".encode("latin-1"))
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": ""}\n{"_id": "два", "text": ""}\n', encoding="utf-8")
    with pytest.raises(CollectionError, match=r"test\.tsv, line 4: document '\ufffd' must be in"):
        Collection(folder).qrels("test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q9\t1\t1", r"test\.tsv, line 4: query 'q9' must be in queries\.jsonl"),
        ("q1\tnone\t1", r"test\.tsv, line 4: document 'none' must be in corpus\.jsonl"),
        ("q1\t1", r"line 4: expected query id, document id and a whole-number grade"),
        ("q1\t1\thigh", r"line 4: expected query id"),
    ],
)
def test_a_faulty_judgement_is_named(folder: Path, line: str, message: str) -> None:
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(CollectionError, match=message):
        Collection(folder).qrels("test")


def test_missing_files_say_what_there_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"no corpus\.jsonl"):
        Collection(tmp_path)
    with pytest.raises(CollectionError, match="it has the splits: dev, test"):
        Collection(folder).qrels("train")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(CollectionError, match=r"no queries\.jsonl"):
        Collection(folder).queries()


def test_documents_are_read_one_at_a_time(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write("broken\n")
    stream = Collection(folder).documents()
    assert next(stream).id == "1"  # the fault further down is not reached yet


def test_extra_keys_are_kept_in_the_file(tmp_path: Path) -> None:
    Collection.write(tmp_path / "c", [{"_id": "1", "title": "", "text": "x", "metadata": {"aliases": ["y"]}}])
    line = (tmp_path / "c" / "corpus.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["metadata"] == {"aliases": ["y"]}
    assert Collection(tmp_path / "c").queries() == {}
