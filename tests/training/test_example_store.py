"""Examples from disk are those of the file, rows resolved; everything wrong is named by file and line."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models.errors import CollectionError
from tests.training.data import corpus_store, write_collection, write_lines, write_plain_examples
from training.data import shards
from training.data.example_store import ExampleStore
from training.data.examples import read_examples, write_examples

GOOD = {"query_id": "1", "query": "one", "positive_ids": ["d1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("examples") / "c")


def open_store(folder: Path, *lines: Any) -> ExampleStore:
    return ExampleStore(
        write_lines(folder / "e.jsonl", *lines), corpus_store(folder, folder / "cache"), folder / "cache"
    )


def test_pools_are_the_documents_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "BLOCK_LINES", 11)
    documents = corpus_store(folder, folder / "cache")
    path = write_plain_examples(tmp_path / "e.jsonl")
    store, wanted = ExampleStore(path, documents, tmp_path / "cache"), list(read_examples(path))
    rows = np.random.default_rng(0).permutation(len(wanted))
    pools = store.pools(rows)
    assert len(store) == len(wanted)
    assert store.query_ids(rows) == [wanted[row].query_id for row in rows]
    assert store.queries(rows) == [wanted[row].query for row in rows]
    for place, row in enumerate(rows):
        example = wanted[row]
        assert documents.ids(pools.positives[place]) == example.positive_ids
        assert documents.ids(pools.negatives[place]) == example.negative_ids
        assert pools.positive_scores[place].tolist() == [example.scores[key] for key in example.positive_ids]
        assert all(math.isnan(score) for score in pools.negative_scores[place])


def test_queries_of_equal_text_have_one_hash(folder: Path) -> None:
    store = open_store(folder, GOOD, GOOD | {"query_id": "2", "query": " ONE"}, GOOD | {"query": "two"})
    first, second, third = store.query_hashes(np.arange(3)).tolist()
    assert first == second
    assert third != first


def test_categories_are_kept_and_written_only_where_there_are_some(folder: Path, tmp_path: Path) -> None:
    lines = [GOOD | {"query_id": "1", "category": "sport"}, GOOD | {"query_id": "2"}]
    assert open_store(folder, *lines).categories(np.arange(2)) == ["sport", ""]
    write_examples(tmp_path / "again.jsonl", read_examples(write_lines(tmp_path / "e.jsonl", *lines)))
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert ["category" in record for record in again] == [True, False]
    assert again[0]["category"] == "sport"
    with pytest.raises(CollectionError, match=r"e\.jsonl, line 1: .*`category` must be a string"):
        open_store(folder, GOOD | {"category": 3})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{cut", r"e\.jsonl, line 3: not valid JSON"),
        ({"query_id": "2", "query": "x"}, "line 3: not a training example .*positive_ids"),
        (GOOD | {"positive_ids": []}, "line 3: query '1' has no positive; provide one, or drop the line"),
        (GOOD | {"positive_ids": "d1"}, "line 3: .*`positive_ids` must be a list of strings"),
        (GOOD | {"negative_ids": [4]}, "line 3: .*`negative_ids` must be a list of strings"),
        (GOOD | {"negative_ids": ["d2", "d1"]}, "line 3: document 'd1' is both a positive and a negative"),
        (GOOD | {"negative_ids": ["d2", "no"]}, "line 3: document 'no' is not in .*corpus.jsonl"),
        (GOOD | {"positive_ids": ["nor"]}, "line 3: document 'nor' is not in .*corpus.jsonl"),
        (GOOD | {"scores": {"d1": math.nan}}, "line 3: the score of document 'd1' is nan; it must be a finite"),
        (GOOD | {"scores": {"d1": "high"}}, "line 3: the score of document 'd1' is 'high'"),
        (
            GOOD | {"scores": {"d1": 1e39}},
            "line 3: the score of document 'd1' is 1e\\+39; it must be a finite number of",
        ),
        (GOOD | {"scores": {"d1": 10**400}}, "line 3: the score of document 'd1' is 10000"),
        ("[1, 2]", r"line 3: expected an object, found '\[1, 2\]'"),
        ('{"query_id": ' + "1" * 5000 + "}", "line 3: not valid JSON"),
        (GOOD | {"scores": [1.0]}, "line 3: .*`scores` must map"),
        (GOOD | {"query": None}, "line 3: .*`query_id` and `query` must be strings"),
        (GOOD | {"answer": 1}, "line 3: .*unknown field 'answer'"),
    ],
)
def test_what_is_wrong_with_an_example_is_named(folder: Path, line: Any, message: str) -> None:
    with pytest.raises(CollectionError, match=message):
        open_store(folder, GOOD, "", line)


def test_a_file_without_examples_and_no_file_are_refused(folder: Path) -> None:
    with pytest.raises(CollectionError, match=r"nothing in .*e\.jsonl; pass a file with at least one line"):
        open_store(folder, "")
    with pytest.raises(CollectionError, match="no training examples"):
        ExampleStore(folder / "absent.jsonl", corpus_store(folder, folder / "cache"), folder / "cache")


@pytest.mark.parametrize("keep", [slice(0, 60), slice(20, None)])
def test_a_gzip_file_that_is_none_or_cut_is_refused(folder: Path, keep: slice) -> None:
    path = folder / "e.jsonl.gz"
    path.write_bytes(gzip.compress(f"{json.dumps(GOOD)}\n".encode() * 100)[keep])
    with pytest.raises(CollectionError, match=r"e\.jsonl\.gz is not a whole gzip file .*; fetch or pack it again"):
        ExampleStore(path, corpus_store(folder, folder / "cache"), folder / "cache")


def test_a_cache_that_cannot_be_written_is_refused(folder: Path) -> None:
    write_lines(folder / "e.jsonl", GOOD)
    documents = corpus_store(folder, folder / "cache")
    (folder / "file").touch()  # no folder can be made in it, by nobody
    with pytest.raises(CollectionError, match=r"file/cache cannot be written .*; set `cache` to a folder that can"):
        ExampleStore(folder / "e.jsonl", documents, folder / "file" / "cache")
