"""Every kind of index against exact search by NumPy: what it finds, after adding, removing, saving and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pytest

from drama_models import Index
from drama_models.errors import IndexFolderError, IndexKindError
from drama_models.folders import sha256_of_file
from drama_models.index.build import build_store
from drama_models.index.kinds import HNSW, IVFPQ, KINDS, Binary, Kind
from drama_models.index.rows import Rows, best, nearest
from drama_models.quantisation import quantise, value_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNT, DIM, K = 10_200, 16, 10
GENERATOR = np.random.default_rng(0)


def clustered(count: int) -> np.ndarray:
    """Unit vectors in clusters, as embeddings lie."""
    centres = np.random.default_rng(1).normal(size=(200, DIM))
    vectors = centres[GENERATOR.integers(200, size=count)] + 0.4 * GENERATOR.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(COUNT), clustered(40)
IDS = [f"d{row}" for row in range(COUNT)]
# (kind, least recall): of its kind on 16 coordinates, where a bit for each says little
SMALL: dict[str, tuple[Kind, float]] = {
    "flat": (KINDS["flat"](), 1.0),
    "int8": (KINDS["int8"](), 0.95),
    "binary": (Binary(candidates=1500), 0.9),
    "hnsw": (HNSW(links=8, build_width=40), 0.95),
    "ivf_pq": (IVFPQ(lists=32, code_bytes=4, training_vectors=100), 0.9),
}


def expected_ids(living: np.ndarray) -> list[list[str]]:
    rows = np.argsort(-(QUERIES @ VECTORS[living].T), axis=1)[:, :K]
    return [[IDS[living[row]] for row in found] for found in rows]


def recall(index: Index, living: np.ndarray) -> float:
    found = [{key for key, _ in hits} for hits in index.search(QUERIES, K)]
    return float(np.mean([len(keys & set(best)) / K for keys, best in zip(found, expected_ids(living), strict=True)]))


@pytest.fixture(scope="module")
def built() -> dict[str, Index]:
    indexes = {}
    for name, (kind, _) in SMALL.items():
        indexes[name] = Index(DIM, kind=kind)
        indexes[name].add(IDS, VECTORS)
        indexes[name].search(QUERIES[:1])
    return indexes


@pytest.mark.parametrize("name", SMALL)
def test_a_kind_finds_what_exact_search_finds(built: dict[str, Index], name: str) -> None:
    index = built[name]
    assert recall(index, np.arange(COUNT)) >= SMALL[name][1]
    hits = index.search(QUERIES[:3], K)
    assert [len(found) for found in hits] == [K, K, K]
    for query, found in zip(QUERIES, hits, strict=False):
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        exact = [float(query @ VECTORS[int(key[1:])]) for key, _ in found]
        np.testing.assert_allclose(scores, exact, atol=0.03)  # two steps of eight bits in sixteen coordinates


@pytest.mark.parametrize("name", SMALL)
def test_adding_removing_saving_and_opening_agree(built: dict[str, Index], name: str, tmp_path: Path) -> None:
    built[name].save(tmp_path / "my.index")
    index = Index.load(tmp_path / "my.index")
    assert (index.kind, len(index), index.removed) == (SMALL[name][0], COUNT, 0)
    index.remove(IDS[:700])
    living = np.arange(700, COUNT)
    assert recall(index, living) >= SMALL[name][1] - 0.02
    index.save(tmp_path / "my.index")
    again = Index.load(tmp_path / "my.index")
    assert again.ids == index.ids == IDS[700:]
    for ours, theirs in zip(again.search(QUERIES, K), index.search(QUERIES, K), strict=True):
        assert [key for key, _ in ours] == [key for key, _ in theirs]
        # rows at other places in a block are summed in another order
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-6)
    assert again.removed == (700 if name in ("hnsw", "ivf_pq") else 0)  # the others leave them out of their files
    again.add(IDS[:700], VECTORS[:700])
    assert again.ids == [*IDS[700:], *IDS[:700]]
    assert recall(again, np.arange(COUNT)) >= SMALL[name][1] - 0.02
    np.testing.assert_allclose(again.vectors()[-700:], VECTORS[:700], atol=0.02)
    with pytest.raises(KeyError, match="'gone' is not in the index"):
        again.remove(["d1", "gone"])
    assert len(again) == COUNT


def test_a_graph_finds_more_than_its_search_is_wide(built: dict[str, Index]) -> None:
    many = 8 * HNSW().search_width
    expected = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :many]
    hits = built["hnsw"].search(QUERIES, many)
    assert [len(found) for found in hits] == [many] * len(QUERIES)
    shared = [
        {key for key, _ in found} & {IDS[row] for row in rows} for found, rows in zip(hits, expected, strict=True)
    ]
    assert sum(map(len, shared)) > 0.95 * expected.size


@pytest.mark.parametrize("name", ["int8", "binary", "hnsw", "ivf_pq"])
def test_faiss_never_reads_a_damaged_file(
    built: dict[str, Index], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built[name].save(tmp_path / "my.index")
    path = tmp_path / "my.index" / "index.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for reader in ("read_index", "read_index_binary"):
        monkeypatch.setattr(faiss, reader, lambda *_: pytest.fail("faiss read a damaged file"))
    for verify in (True, False):  # the switch is for rows alone
        with pytest.raises(IndexFolderError, match=r"index\.faiss is not the file that was written"):
            Index.load(tmp_path / "my.index", verify=verify)


def test_rows_are_checked_unless_told_otherwise(built: dict[str, Index], tmp_path: Path) -> None:
    for name in ("flat", "binary"):
        built[name].save(tmp_path / name)
        path = tmp_path / name / "rows-00000.npy"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(IndexFolderError, match=r"rows-00000\.npy is not the file that was written"):
            Index.load(tmp_path / name)
        assert len(Index.load(tmp_path / name, verify=False)) == COUNT


def test_a_setting_of_the_search_trades_recall(built: dict[str, Index]) -> None:
    index = built["ivf_pq"]
    before = recall(index, np.arange(COUNT))
    index.tune(probes=1, candidates=K)
    less = recall(index, np.arange(COUNT))
    index.tune(probes=32, candidates=200)
    assert less < before == recall(index, np.arange(COUNT))
    with pytest.raises(IndexKindError, match="can change probes, candidates, not lists"):
        index.tune(lists=3)


def test_ivf_pq_is_built_the_same_twice_and_refuses_too_few() -> None:
    two = [Index(DIM, kind=SMALL["ivf_pq"][0]) for _ in range(2)]
    for index in two:
        index.add(IDS, VECTORS)
    assert two[0].search(QUERIES, K) == two[1].search(QUERIES, K)
    few = Index(DIM, kind="ivf_pq")
    few.add(IDS[:500], VECTORS[:500])
    with pytest.raises(IndexKindError, match=r"at least 9,984 documents .* and here are 500; use flat"):
        few.search(QUERIES)
    odd = Index(DIM, kind="ivf_pq", code_bytes=5)
    odd.add(IDS, VECTORS)
    with pytest.raises(IndexKindError, match="code_bytes=5 must divide the vectors' size, 16"):
        odd.search(QUERIES)


def test_wrong_kinds_and_settings_are_named() -> None:
    with pytest.raises(IndexKindError, match="no index kind 'lsh'; choose one of: flat, int8, binary, hnsw, ivf_pq"):
        Index(DIM, kind="lsh")
    with pytest.raises(IndexKindError, match="'hnsw' has no setting 'link'; it has: links, build_width, search_width"):
        Index(DIM, kind="hnsw", link=3)
    with pytest.raises(IndexKindError, match="links=1 must be at least 2"):
        Index(DIM, kind="hnsw", links=1)
    with pytest.raises(IndexKindError, match="links='many' must be a whole number"):
        Index(DIM, kind="hnsw", links="many")
    with pytest.raises(IndexKindError, match="rescored_with='bf16' must be float32, uint8 or none"):
        Index(DIM, kind="binary", rescored_with="bf16")


def test_an_index_is_built_again_in_another_kind(built: dict[str, Index]) -> None:
    flat = Index(DIM)
    flat.add(IDS, VECTORS)
    flat.remove(IDS[:10])
    graph = flat.rebuilt("hnsw", links=8)
    assert (graph.ids, graph.removed, graph.kind.name) == (IDS[10:], 0, "hnsw")
    assert recall(graph, np.arange(10, COUNT)) > 0.9
    graph.remove(IDS[10:20])
    again = graph.rebuilt()
    assert (again.kind, again.ids, again.removed) == (graph.kind, IDS[20:], 0)
    with pytest.raises(IndexKindError, match=r"of kind int8 keeps rounded vectors; .*: flat, hnsw"):
        built["int8"].rebuilt("flat")


@pytest.mark.parametrize("name", ["binary", "ivf_pq"])
def test_without_rows_for_rescoring_codes_rank(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lists": 16} if name == "ivf_pq" else {}
    index = Index(DIM, kind=name, rescored_with="none", **settings)
    index.add(IDS, VECTORS)
    index.save(tmp_path / "my.index")
    assert {path.name for path in (tmp_path / "my.index").iterdir()} == {"manifest.json", "ids.json", "index.faiss"}
    again = Index.load(tmp_path / "my.index")
    assert again.search(QUERIES, K) == index.search(QUERIES, K)
    if name == "binary":
        signs = np.where(VECTORS > 0, 1, -1)
        agreeing = (np.where(QUERIES > 0, 1, -1) @ signs.T).max(axis=1) / DIM
        np.testing.assert_allclose([found[0][1] for found in again.search(QUERIES, 1)], agreeing, atol=1e-6)
        np.testing.assert_allclose(again.vectors(), signs / 4)
    else:
        assert np.mean((again.vectors() * VECTORS).sum(axis=1)) > 0.9


def test_int8_keeps_the_codes_of_the_embedding_quantiser(built: dict[str, Index]) -> None:
    store = build_store(SMALL["int8"][0], built["flat"]._store.rows)  # type: ignore[union-attr]
    codes = faiss.vector_to_array(store.index.codes).reshape(COUNT, DIM)  # type: ignore[attr-defined]
    expected = quantise(VECTORS, "uint8", value_ranges(VECTORS))
    # faiss divides by the whole range and not by the step: the last bit of a float decides some codes
    assert (codes == expected).mean() > 0.999
    assert np.abs(codes.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("k", [1, 10, 150])
def test_flat_search_ranks_as_faiss_does(built: dict[str, Index], k: int) -> None:
    reference = faiss.IndexFlatIP(DIM)
    reference.add(VECTORS)
    scores, rows = reference.search(QUERIES, k)
    for query, hits in enumerate(built["flat"].search(QUERIES, k)):
        assert [key for key, _ in hits] == [IDS[row] for row in rows[query]]
        np.testing.assert_allclose([score for _, score in hits], scores[query], atol=1e-6)


def float32(values: list[Any]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_equal_scores_go_to_the_earlier_document_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drama_models.index.rows.SCORES_AT_ONCE", 8)
    rows = Rows(2, np.float32)
    rows.append(np.tile(float32([[1, 0], [0, 1], [1, 0]]), (10, 1)))
    scores, found = nearest(rows, float32([[1, 0], [0, 1]]), 5)
    np.testing.assert_array_equal(found, [[0, 2, 3, 5, 6], [1, 4, 7, 10, 13]])
    np.testing.assert_array_equal(scores, np.ones((2, 5)))
    alive = np.ones(30, dtype=bool)
    alive[[0, 3]] = False
    assert nearest(rows, float32([[1, 0]]), 2, alive)[1].tolist() == [[2, 5]]
    assert best(float32([1, 3, 3, 2, 3]), 2).tolist() == [1, 2]


def test_rows_are_split_into_files_and_mapped_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drama_models.index.rows.FILE_BYTES", 1000 * 4 * DIM)
    monkeypatch.setattr("drama_models.index.rows.COPIED_BYTES", 300 * 4 * DIM)
    index = Index(DIM)
    for start in range(0, COUNT, 77):  # many small blocks
        index.add(IDS[start : start + 77], VECTORS[start : start + 77])
    assert len(list(index._waiting.blocks())) < 12
    index.remove(IDS[:250])
    index.save(tmp_path / "my.index")
    files = sorted((tmp_path / "my.index").glob("rows-*.npy"))
    assert [len(np.load(path)) for path in files] == [1000] * 9 + [950]
    again = Index.load(tmp_path / "my.index")
    np.testing.assert_array_equal(again.vectors(), VECTORS[250:])
    shard = np.load(files[0], mmap_mode="r")
    other = Index(DIM)
    other.add(IDS[:1000], shard)
    (_, block), *_ = other._waiting.blocks()
    assert np.shares_memory(block, shard)


@pytest.mark.parametrize("name", ["flat", "hnsw"])
def test_an_empty_index_is_saved_opened_and_filled(name: str, tmp_path: Path) -> None:
    Index(DIM, kind=name).save(tmp_path / "my.index")
    index = Index.load(tmp_path / "my.index")
    assert (len(index), index.search(QUERIES[:2])) == (0, [[], []])
    index.add(IDS[:30], VECTORS[:30])
    assert [len(found) for found in index.search(QUERIES[:2], 50)] == [30, 30]


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_a_kind_that_learns_ranges_says_when_they_do_not_reach(name: str, tmp_path: Path) -> None:
    index = Index(DIM, kind=name)
    with pytest.raises(IndexKindError, match=f"of kind {name} learns from its documents; add some"):
        index.save(tmp_path / "my.index")
    index.add(IDS[:2], VECTORS[:2])
    assert index.search(VECTORS[:1], 1)[0][0][0] == "d0"
    with pytest.warns(UserWarning, match=r"\d\d% of the numbers lie beyond the range"):
        index.add(IDS[2:50], VECTORS[2:50])


def test_an_index_from_before_there_were_kinds_still_opens(tmp_path: Path) -> None:
    flat = faiss.IndexFlatIP(DIM)
    flat.add(VECTORS[:50])
    faiss.write_index(flat, str(tmp_path / "index.faiss"))
    (tmp_path / "ids.json").write_text(json.dumps(IDS[:50]))
    hashes = {name: sha256_of_file(tmp_path / name) for name in ("index.faiss", "ids.json")}
    manifest = {"format": 1, "kind": "flat", "metric": "inner_product", "dim": DIM, "count": 50}
    manifest |= {"model": None, "collection": None, "sha256": hashes}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    index = Index.load(tmp_path)
    np.testing.assert_array_equal(index.vectors(), VECTORS[:50])
    assert index.search(VECTORS[7:8], 1)[0][0][0] == "d7"


@pytest.mark.parametrize("change", [{"dim": 8}, {"kind": "hnsw"}, {"rows": 3}, {"settings": {"links": 4}}])
def test_a_manifest_that_does_not_fit_is_refused(
    built: dict[str, Index], change: dict[str, Any], tmp_path: Path
) -> None:
    built["flat"].save(tmp_path / "my.index")
    path = tmp_path / "my.index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(IndexFolderError, match="does not fit its manifest"):
        Index.load(tmp_path / "my.index")
