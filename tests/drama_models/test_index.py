"""The index against NumPy brute force; its file format against damage; the retriever against other models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drama_models import Encoder, Index, Retriever
from drama_models.errors import DimensionError, IndexFolderError, IndexKindError
from drama_models.folders import sha256_of_file
from drama_models.index import ModelIdentity
from drama_models.index import folder as folder_format
from drama_models.index.build import read_store
from tests.conftest import TEXTS

GENERATOR = np.random.default_rng(0)


def unit_vectors(count: int, dim: int) -> np.ndarray:
    vectors = GENERATOR.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index() -> Index:
    built = Index(16, ModelIdentity("some/model", "abc"), "../collection")
    built.add([f"d{number}" for number in range(200)], unit_vectors(200, 16))
    return built


def test_search_matches_numpy_brute_force(index: Index) -> None:
    queries = unit_vectors(7, 16)
    expected = queries @ index.vectors().T
    for hits, scores in zip(index.search(queries, k=12), expected, strict=True):
        best = np.argsort(-scores)[:12]
        assert [key for key, _ in hits] == [f"d{row}" for row in best]
        np.testing.assert_allclose([score for _, score in hits], scores[best], atol=1e-6)


def test_k_beyond_the_index_and_empty_cases(index: Index) -> None:
    assert len(index.search(unit_vectors(1, 16), k=1000)[0]) == 200
    assert index.search(np.empty((0, 16), dtype=np.float32)) == []
    assert Index(4).search(unit_vectors(2, 4)) == [[], []]
    with pytest.raises(ValueError, match="at least 1"):
        index.search(unit_vectors(1, 16), k=0)
    with pytest.raises(ValueError, match=r"shape \(n, 16\)"):
        index.search(unit_vectors(1, 15))


def test_add_refuses_what_would_spoil_the_index(index: Index) -> None:
    with pytest.raises(ValueError, match="'d3' is in the index already"):
        index.add(["d3"], unit_vectors(1, 16))
    with pytest.raises(ValueError, match="'x' is in the index already"):
        index.add(["x", "y", "x"], unit_vectors(3, 16))
    with pytest.raises(ValueError, match=r"\(1, 16\), found \(1, 15\)"):
        index.add(["x"], unit_vectors(1, 15))
    broken = unit_vectors(2, 16)
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match="document 'y' is not finite"):
        index.add(["x", "y"], broken)
    for size in (1e39, -1e300):  # finite, but beyond float32
        with pytest.raises(ValueError, match="document 'y' is not finite"):
            index.add(["x", "y"], np.outer([1, size], np.ones(16)))  # type: ignore[arg-type]
    assert len(index) == 200


def test_saved_and_loaded_is_the_same(index: Index, tmp_path: Path) -> None:
    index.add(["ключ", 'quote" and tab\t'], unit_vectors(2, 16))
    index.save(tmp_path / "my.index")
    index.save(tmp_path / "my.index")  # replaces what is there
    again = Index.load(tmp_path / "my.index")
    assert (again.ids, again.dim, again.model, again.collection) == (index.ids, 16, index.model, "../collection")
    np.testing.assert_array_equal(again.vectors(), index.vectors())
    again.add(["new"], unit_vectors(1, 16))
    assert len(again) == 203
    assert [path.name for path in tmp_path.iterdir()] == ["my.index"]


@pytest.mark.parametrize("name", ["rows-00000.npy", "ids.json"])
def test_one_flipped_byte_is_found_on_opening(index: Index, tmp_path: Path, name: str) -> None:
    index.save(tmp_path / "my.index")
    path = tmp_path / "my.index" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexFolderError, match=f"{name} is not the file that was written"):
        Index.load(tmp_path / "my.index")


def test_other_folders_and_formats_are_refused(index: Index, tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="is not an index"):
        Index.load(tmp_path)
    index.save(tmp_path / "my.index")
    path = tmp_path / "my.index" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"format": 99}), encoding="utf-8")
    with pytest.raises(IndexFolderError, match="format 99, this version reads 2"):
        Index.load(tmp_path / "my.index")
    path.write_text(json.dumps(manifest | {"sha256": {"../../secret": "0"}}), encoding="utf-8")
    with pytest.raises(IndexFolderError):
        Index.load(tmp_path / "my.index")


def test_sizes_that_numpy_counted_are_sizes(tmp_path: Path) -> None:
    vectors = unit_vectors(3, 8)
    index = Index(np.int64(vectors.shape[1]))  # type: ignore[arg-type]
    index.add(list("abc"), vectors)
    index.save(tmp_path / "my.index")
    assert Index.load(tmp_path / "my.index").dim == 8


def test_a_failure_while_writing_leaves_the_old_index(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.save(tmp_path / "my.index")
    before = {path.name: path.read_bytes() for path in (tmp_path / "my.index").iterdir()}
    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    index.add(["new"], unit_vectors(1, 16))
    with pytest.raises(OSError, match="disk full"):
        index.save(tmp_path / "my.index")
    assert {path.name: path.read_bytes() for path in (tmp_path / "my.index").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["my.index"]


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, names = unit_vectors(50, 16), [f"d{number}" for number in range(50)]
    for folder, order in (("my.index", 1), ("other", -1)):  # the same documents in another order
        built = Index(16)
        built.add(names[::order], vectors[::order])
        built.save(tmp_path / folder)
    other, replaced = Index.load(tmp_path / "other"), [1]

    def replaced_before_it_is_read(*arguments: object) -> object:
        if replaced:
            replaced.pop()
            other.save(tmp_path / "my.index")
        return read_store(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_format, "read_store", replaced_before_it_is_read)
    hits = Index.load(tmp_path / "my.index").search(vectors[:1], 1)
    assert [document for document, _ in hits[0]] == ["d0"]
    assert not replaced


def test_retriever_finds_a_document_by_its_own_text(release_folder: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder)
    index = Index(48, ModelIdentity.of(encoder))
    index.add([f"d{number}" for number in range(len(TEXTS))], encoder.encode_documents(TEXTS))
    retriever = Retriever(encoder, index)
    expected = encoder.encode_queries(["digest of a file"]) @ encoder.encode_documents(TEXTS).T
    hits = retriever.search("digest of a file", k=3)
    assert [key for key, _ in hits] == [f"d{row}" for row in np.argsort(-expected[0])[:3]]
    run = retriever.run({"q1": "digest of a file", "q2": "two nodes of a graph"}, k=5)
    assert list(run["q1"])[:3] == [key for key, _ in hits]
    assert [len(found) for found in run.values()] == [5, 5]


def test_an_index_refuses_another_model_or_size(release_folder: Path, retriever_folder: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder)
    index = Index(48, ModelIdentity("release", encoder.fingerprint()))
    Retriever(encoder, index)
    with pytest.raises(IndexFolderError, match=r"built with release; this encoder is .*another space"):
        Retriever(Encoder.from_pretrained(retriever_folder), index)
    with pytest.raises(IndexFolderError, match=r"dim 48\); this encoder is .*dim 16"):
        Retriever(Encoder.from_pretrained(release_folder, dim=16), index)
    assert Retriever(encoder, Index(48)).search("anything") == []


def test_ids_that_no_file_can_hold_and_sizes_that_are_none_are_refused(index: Index) -> None:
    for key in (1, None, b"x", "\ud800"):
        with pytest.raises(ValueError, match="must be text, without half of a character"):
            index.add([key], unit_vectors(1, 16))  # type: ignore[list-item]
    for dim in (0, -1, 1.5, "x", True, np.bool_(True)):
        with pytest.raises(DimensionError, match="whole number above 0"):
            Index(dim)  # type: ignore[arg-type]
    for k in (0, -1, 1.5):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            index.search(unit_vectors(1, 16), k=k)  # type: ignore[arg-type]
    index.remove("d7")  # one id, not its letters
    assert len(index) == 199
    with pytest.raises(KeyError, match="'d7' is not in the index"):
        index.remove(["d3", "d7"])
    assert len(index) == 199


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", 3), ("model", {"name": "x"}), ("collection", 3), ("dim", "16"), ("dim", 17), ("rows", 3),
        ("kind", []), ("settings", {"links": 3}), ("settings", 3), ("format", True), ("format", "2"), ("sha256", []),
        ("sha256", ["ids.json"]), ("sha256", "ids.json"), ("model", {"name": "x", "fingerprint": 3}),
        ("model", {"name": "x", "fingerprint": "abc", "author": "y"}),
    ],
)  # fmt: skip
def test_any_other_value_in_a_manifest_is_one_sentence(
    index: Index, tmp_path: Path, setting: str, value: object
) -> None:
    index.save(tmp_path / "my.index")
    path = tmp_path / "my.index" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {setting: value}), encoding="utf-8")
    with pytest.raises((IndexFolderError, IndexKindError), match=r"my\.index"):
        Index.load(tmp_path / "my.index")
    del manifest[setting]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    if setting != "settings":  # which have defaults
        with pytest.raises(IndexFolderError, match=r"my\.index"):
            Index.load(tmp_path / "my.index")


@pytest.mark.parametrize("ids", [["d0"] * 200, [3] * 200, [["d0"]] * 200, {"d0": 1}, None])
def test_ids_on_disk_that_are_no_ids_are_refused(index: Index, tmp_path: Path, ids: object) -> None:
    index.save(tmp_path / "my.index")
    path = tmp_path / "my.index" / "manifest.json"
    (tmp_path / "my.index" / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["sha256"]["ids.json"] = sha256_of_file(tmp_path / "my.index" / "ids.json")  # whoever made it lied well
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(IndexFolderError, match="does not fit its manifest"):
        Index.load(tmp_path / "my.index")


def test_equal_texts_are_all_found(release_folder: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder)
    index = Index(48, ModelIdentity.of(encoder))
    index.add([f"d{number}" for number in range(6)], encoder.encode_documents(["the same", "other"] * 3))
    hits = Retriever(encoder, index).search("the same", k=6)
    assert {key for key, _ in hits} == set(index.ids)
    for group in (hits[:3], hits[3:]):
        assert len({int(key[1:]) % 2 for key, _ in group}) == 1
        np.testing.assert_allclose([score for _, score in group], group[0][1], atol=1e-6)
