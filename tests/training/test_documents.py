"""Texts by id from disk, against a plain dictionary; what is refused; and what a kill in the middle leaves."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from tests.training.data import corpus_store, write_collection, write_lines
from training.data import documents, shards
from training.data.documents import TextStore
from training.data.examples import TrainingExample, write_examples

BUILD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from training.data import shards
from training.data.documents import TextStore

shards.BLOCK_LINES = 50
written, fsync = [], os.fsync

def die_in_the_fourth(descriptor):
    written.append(descriptor)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = die_in_the_fourth
TextStore(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("block", [7, 1 << 15])
@pytest.mark.parametrize("packed", [False, True])
def test_every_document_is_found_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, packed: bool
) -> None:
    monkeypatch.setattr(shards, "BLOCK_LINES", block)
    folder = write_collection(tmp_path / "c", documents=100)
    if packed:
        with gzip.open(folder / "corpus.jsonl.gz", "wb") as file:
            file.write((folder / "corpus.jsonl").read_bytes())
        (folder / "corpus.jsonl").unlink()
    wanted = {document.id: document.content for document in Collection(folder).documents()}
    store = corpus_store(folder, tmp_path / "cache")
    asked = [*reversed(list(wanted)), "d100", "", "D1"]
    rows = store.rows(asked)
    assert len(store) == len(wanted)
    assert rows[-3:].tolist() == [-1, -1, -1]
    assert store.ids(rows[:-3]) == asked[:-3]
    assert store.contents(rows[:-3]) == [wanted[key] for key in asked[:-3]]
    assert store.contents(store.rows(["d3", "d4"]), " [SEP] ") == ["Title 3 [SEP] text of number 3", "text of number 4"]


def test_ids_that_share_their_first_64_bits_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = documents.id_hashes
    monkeypatch.setattr(documents, "id_hashes", lambda ids: (real(ids)[0] % np.uint64(3), real(ids)[1]))
    store = corpus_store(write_collection(tmp_path / "c", documents=40), tmp_path / "cache")
    ids = [f"d{number}" for number in range(40)]
    assert store.rows([*ids, "other"]).tolist() == [*range(40), -1]


def test_equal_contents_have_one_hash_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    texts = ["Größe  ist\tgut", "GRÖSSE ist gut", "Gro\u0308ße ist gut", "Größe ist schlecht"]
    path = write_lines(tmp_path / "q.jsonl", *({"_id": str(n), "text": text} for n, text in enumerate(texts)))
    hashes = TextStore(path, tmp_path / "cache").content_hashes(np.arange(4))
    assert len({*hashes[:3].tolist()}) == 1
    assert hashes[3] != hashes[0]


def test_odd_texts_and_ids_survive(tmp_path: Path) -> None:
    records = [{"_id": "\ud800", "text": "lone \udc00 surrogate"}, {"_id": "ключ\0", "text": "", "title": None}]
    store = TextStore(write_lines(tmp_path / "q.jsonl", *records), tmp_path / "cache")
    assert store.rows(["ключ\0", "\ud800"]).tolist() == [1, 0]
    assert store.contents(np.arange(2)) == ["lone \ufffd surrogate", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{cut", r"c\.jsonl, line 3: not valid JSON"),
        ('["a"]', "line 3: expected an object"),
        ({"_id": 7, "text": "x"}, "line 3: `_id`, `title` and `text` must be strings; found _id=7"),
        ({"_id": "x", "title": ["t"], "text": "x"}, "line 3: `_id`, `title`"),
        ({"_id": "x"}, "line 3: .*text of type NoneType"),
        ({"_id": "first", "text": "again"}, "line 3: id 'first' was used in line 1; ids must be unique"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"_id": "first", "text": "x"}, "", line)
    with pytest.raises(CollectionError, match=message):
        TextStore(path, tmp_path / "cache")
    write_lines(path, {"_id": "first", "text": "mended"})  # the next attempt does not go on from the broken one
    assert TextStore(path, tmp_path / "cache").contents(np.zeros(1, np.int64)) == ["mended"]


def test_the_queries_of_examples_serve_as_queries(tmp_path: Path) -> None:
    example = TrainingExample(query_id="c1", query="a cropped sentence", positive_ids=["d1"])
    write_examples(tmp_path / "crops.jsonl", [example])
    store = TextStore(tmp_path / "crops.jsonl", tmp_path / "cache")
    assert (store.ids(store.rows(["c1"])), store.contents(store.rows(["c1"]))) == (["c1"], ["a cropped sentence"])


def test_a_file_without_lines_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="pass a file with at least one line"):
        TextStore(write_lines(tmp_path / "c.jsonl", ""), tmp_path / "cache")
    with pytest.raises(CollectionError, match="There is no"):
        TextStore(tmp_path / "absent.jsonl", tmp_path / "cache")


def test_a_killed_build_goes_on_at_its_last_complete_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_collection(tmp_path / "c") / "corpus.jsonl"
    cache = tmp_path / "cache"
    killed = subprocess.run([sys.executable, "-c", BUILD_AND_DIE, source, cache], check=False)
    assert killed.returncode == -signal.SIGKILL
    (work,) = cache.glob(".*.building")
    left = {path.name: path.stat().st_mtime_ns for path in work.glob("*.arrow") if path.name[0] != "."}
    assert sorted(left) == ["000000.arrow", "000001.arrow", "000002.arrow"]
    monkeypatch.setattr(shards, "BLOCK_LINES", 50)
    store = TextStore(source, cache)
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert len(made) == 12
    assert {name: made[name] for name in left} == left
    whole = TextStore(source, tmp_path / "whole")
    every = np.arange(len(whole))
    assert store.ids(every) == whole.ids(every)
    assert store.contents(every) == whole.contents(every)


def test_a_changed_collection_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    folder, cache = write_collection(tmp_path / "c", documents=5), tmp_path / "cache"
    corpus_store(folder, cache)
    (manifest,) = cache.glob("*/manifest.json")
    first = manifest.stat().st_mtime_ns
    corpus_store(folder, cache)
    assert manifest.stat().st_mtime_ns == first
    shutil.rmtree(folder)
    write_collection(folder, documents=6)
    assert len(corpus_store(folder, cache)) == 6
    assert json.loads(manifest.read_text(encoding="utf-8"))["bytes"] == (folder / "corpus.jsonl").stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_random_reads_leave_no_pages_behind(tmp_path: Path) -> None:
    """Resident pages of the mapped files, counted by the kernel, are handed back while rows are read."""
    store = corpus_store(write_collection(tmp_path / "c", documents=20_000), tmp_path / "cache")
    store.contents(np.random.default_rng(0).integers(0, 20_000, 100_000))
    mapped = Path("/proc/self/smaps").read_text(encoding="utf-8").split(str(tmp_path / "cache"))[1:]
    shard_maps = [part for part in mapped if part.splitlines()[0].endswith(".arrow")]
    assert len(shard_maps) == 1
    assert [part.split("Rss:")[1].split()[0] for part in shard_maps] == ["0"]  # KiB
