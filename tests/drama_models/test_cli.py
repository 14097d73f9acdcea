"""The console command end to end, as a user types it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drama_models import BM25, Collection, Encoder, Index, evaluate
from drama_models.bulk import read_shards
from drama_models.cli import main
from drama_models.errors import OutputError
from drama_models.evaluation import read_run
from drama_models.folders import sha256_of_folder
from drama_models.index.kinds import HNSW


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "drama_models.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def my_index(release_folder: Path, collection_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "my.index"
    result = run("index", collection_folder, path, "--model", release_folder)
    assert result.returncode == 0, result.stderr
    assert "96 documents, dim 48; next: drama search" in result.stdout
    return path


def test_search_shows_ids_scores_and_texts(my_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(my_index), "digest of a file", "--k", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert all(hit["text"] for hit in hits)
    assert main(["search", str(my_index), "digest of a file", "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert hits[0]["id"] in lines[0]


def test_texts_of_hits_are_read_no_further_than_the_last_of_them(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection, index = shutil.copytree(collection_folder, tmp_path / "collection"), str(tmp_path / "my.index")
    assert main(["index", str(collection), index, "--model", str(release_folder)]) == 0
    with (collection / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write("behind them all\n")
    capsys.readouterr()
    assert main(["search", index, "digest of a file", "--json"]) == 0
    texts = {document.id: document.text for document in Collection(collection_folder).documents()}
    assert {hit["id"]: hit["text"] for hit in json.loads(capsys.readouterr().out)}.items() <= texts.items()


def test_encode_then_index_equals_index_from_the_collection(
    my_index: Path, release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, index = str(tmp_path / "vectors"), str(tmp_path / "two.index")
    assert main(["encode", str(release_folder), str(collection_folder), vectors]) == 0
    assert main(["index", vectors, index]) == 0
    assert "next: drama search" in capsys.readouterr().out
    one, two = Index.load(my_index), Index.load(index)
    assert one.ids == two.ids
    assert (one.vectors() == two.vectors()).all()


def test_evaluate_writes_a_run_that_gives_the_same_figures(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.trec"
    words = ["evaluate", str(release_folder), str(collection_folder), "--run", str(path), "--json"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out)
    expected = evaluate(read_run(path), Collection(collection_folder).qrels("test"))
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert (figures["queries"], figures["documents"]) == (8, 96)


def test_a_shorter_dimension_is_used_throughout(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "small.index")
    assert main(["index", str(collection_folder), index, "--model", str(release_folder), "--dim", "16"]) == 0
    assert main(["search", index, "digest", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    encoder = Encoder.from_pretrained(release_folder, dim=16)
    expected = Index.load(index).search(encoder.encode_queries("digest"), 10)[0]
    assert [hit["id"] for hit in found] == [key for key, _ in expected]


def test_vectors_of_another_precision_are_not_mixed(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encode", str(release_folder), str(collection_folder), str(tmp_path / "vectors"), "--precision"]
    assert main([*words, "int8"]) == 0
    texts = [document.content for document in Collection(collection_folder).documents()]
    expected, exact = (
        Encoder.from_pretrained(release_folder, precision=precision).encode_documents(texts)
        for precision in ("int8", "fp32")
    )
    ((_, found),) = read_shards(tmp_path / "vectors")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - exact).max() > 1e-5
    assert main([*words, "fp32"]) == 2
    assert "another computing_precision (int8, not fp32)" in capsys.readouterr().err
    assert main([*words, "int8"]) == 0


def test_an_index_of_another_kind_from_vectors_and_from_an_index(
    my_index: Path, release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, graph, bits = (str(tmp_path / name) for name in ("vectors", "deep/graph.index", "bits.index"))
    assert main(["index", str(my_index), graph, "--kind", "hnsw", "--set", "links=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": graph, "count": 96, "dim": 48, "kind": "hnsw"}
    assert Index.load(graph).kind == HNSW(links=8)
    assert main(["encode", str(release_folder), str(collection_folder), vectors, "--store", "uint8"]) == 0
    assert main(["index", vectors, bits, "--kind", "binary", "--set", "rescored_with=float32"]) == 0
    found = {}
    for name in (str(my_index), graph, bits):
        capsys.readouterr()
        assert main(["search", name, "digest of a file", "-k", "5", "--json", "--no-verify"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert [hit["id"] for hit in found[graph]] == [hit["id"] for hit in found[str(my_index)]]
    assert all(hit["text"] for hit in found[graph])  # model and collection are found from the deeper folder too
    assert found[bits][0]["score"] == pytest.approx(found[graph][0]["score"], abs=0.01)


def test_an_index_behind_links_finds_its_model_and_texts(
    my_index: Path, release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, data, link = tmp_path / "a" / "deep" / "disk", tmp_path / "data", tmp_path / "link.index"
    (disk / "link.index").mkdir(parents=True)
    data.symlink_to(disk)
    link.symlink_to(disk / "link.index")
    collection, model = (tmp_path / name for name in ("collection", "model"))
    collection.symlink_to(collection_folder)
    model.symlink_to(release_folder)
    assert main(["index", str(collection), str(data / "my.index"), "--model", str(model)]) == 0
    assert main(["index", str(collection), str(link), "--model", str(model)]) == 0
    assert main(["index", str(link), str(data / "graph.index"), "--kind", "hnsw"]) == 0
    found = []
    for index in (my_index, data / "my.index", link, data / "graph.index"):
        capsys.readouterr()
        assert main(["search", str(index), "digest of a file", "-k", "3", "--json"]) == 0
        found.append([(hit["id"], hit["text"]) for hit in json.loads(capsys.readouterr().out)])
    assert found[1:] == [found[0]] * 3
    assert link.is_symlink()


def test_bm25_is_kept_with_the_index(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "my.index")
    assert main(["index", str(collection_folder), index, "--model", str(release_folder), "--bm25"]) == 0
    answers = []
    for _ in range(2):
        capsys.readouterr()
        assert main(["search", index, "digest of a file", "--bm25", "--json"]) == 0
        printed = capsys.readouterr()
        answers.append((json.loads(printed.out), "made anew" in printed.err))
        shutil.rmtree(tmp_path / "my.index" / "bm25", ignore_errors=True)
    assert answers[0][0] == answers[1][0]
    assert [anew for _, anew in answers] == [False, True]


def test_bm25_is_searched_in_the_language_it_is_kept_for(
    my_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, alone = shutil.copytree(my_index, tmp_path / "my.index"), "漢字"
    opened = Index.load(index)
    opened.model = opened.model and opened.model.renamed(lambda name: str((my_index / name).resolve()))
    opened.collection = str((my_index / str(opened.collection)).resolve())
    opened.save(index, bm25=BM25([("d5", alone)], language="zh"))
    found = {}
    for words in ([], ["zh"], ["fr"]):
        assert main(["search", str(index), alone, "--json", "--bm25", *words]) == 0
        printed = capsys.readouterr()
        found["".join(words)] = (json.loads(printed.out)[0]["id"], printed.err)
    assert found[""] == found["zh"] == ("d5", "")
    assert "made anew for this search, since the index keeps it for 'zh' and not for 'fr'" in found["fr"][1]


def test_where_bm25_finds_no_room_the_old_index_stands_with_its_own(
    my_index: Path,
    release_folder: Path,
    collection_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = shutil.copytree(my_index, tmp_path / "my.index")
    BM25([("d0", "of before")]).save(index / "bm25")
    before = sha256_of_folder(index)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BM25, "save", full)
    words = ["index", str(collection_folder), str(index), "--model", str(release_folder), "--dim", "16", "--bm25"]
    assert main(words) == 2
    assert "no room left" in capsys.readouterr().err
    assert sha256_of_folder(index) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "absent.index", "x"], "absent.index is not an index"),
        (["index", "absent", "out.index", "--model", "absent-model"], "absent-model is not a folder here"),
        (["index", "absent", "out.index"], "absent is not a finished folder of vectors"),
        (["index", "absent", "out.index", "--kind", "hnsw", "--set", "link=3"], "has no setting 'link'"),
        (["index", "absent", "out.index", "--set", "links"], "must be NAME=VALUE, such as --set links=48"),
        (["index", "absent", "out.index", "--bm25"], "--bm25 reads texts, and absent has none"),
        (
            ["index", "absent", "out.index", "--dim", "64", "--device", "cpu"],
            "so --dim and --device would change nothing",
        ),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_judgements_and_threads_that_are_none_are_one_sentence(
    release_folder: Path,
    collection_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    collection = shutil.copytree(collection_folder, tmp_path / "collection")
    (collection / "qrels" / "none.tsv").write_text("query-id\tcorpus-id\tscore\n", encoding="utf-8")
    assert main(["evaluate", str(release_folder), str(collection), "--split", "none"]) == 2
    assert "The split 'none' of" in capsys.readouterr().err
    monkeypatch.setenv("DRAMA_THREADS", "abc")
    assert main(["encode", str(release_folder), str(collection), str(tmp_path / "vectors")]) == 2
    assert "error: DRAMA_THREADS='abc' must be a whole number above 0" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_the_old_index_stands(
    my_index: Path, release_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    index = shutil.copytree(my_index, tmp_path / "my.index")
    before = sha256_of_folder(index)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000)); "
    code = f"{limit}from drama_models.cli import main; raise SystemExit(main())"
    for words in (["index", collection_folder, index, "--model", release_folder, "--dim", "16"],
                  ["encode", release_folder, collection_folder, tmp_path / "vectors"]):  # fmt: skip
        command = [sys.executable, "-c", code, *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2, result.stderr
        assert "error: there is no room left on the disk" in result.stderr
        assert "Traceback" not in result.stderr
    assert sha256_of_folder(index) == before
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["job.json"]
    assert run("encode", release_folder, collection_folder, tmp_path / "vectors").returncode == 0


def test_places_that_cannot_be_written_are_named(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear", encoding="utf-8")
    words = ["index", str(collection_folder), "", "--model", str(release_folder)]
    for place, message in (("file/index", "file"), ("file", "is a file where a folder"), ("mine", "something else")):
        words[2] = str(tmp_path / place)
        assert main(words) == 2
        assert message in capsys.readouterr().err
    words = ["encode", str(release_folder), str(collection_folder), str(tmp_path / "file")]
    assert main(words) == 2
    assert f"{tmp_path / 'file'} cannot be used" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mine"}
    assert (tmp_path / "mine" / "letter").read_text(encoding="utf-8") == "dear"


def test_vectors_indexes_and_collections_do_not_take_each_others_place(
    my_index: Path, release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, collection = (shutil.copytree(path, tmp_path / path.name) for path in (my_index, collection_folder))
    model, vectors = str(release_folder), tmp_path / "vectors"
    assert main(["encode", model, str(collection), str(vectors)]) == 0
    before = {path: sha256_of_folder(path) for path in (index, collection, vectors)}
    for words in (["encode", model, str(collection), str(index)], ["encode", model, str(collection), str(collection)],
                  ["index", str(vectors), str(vectors)], ["index", str(index), str(vectors)],
                  ["index", str(collection), str(collection), "--model", model]):  # fmt: skip
        assert main(words) == 2
        assert "holds something else" in capsys.readouterr().err
    with pytest.raises(OutputError, match="holds something else"):
        Index.load(index).save(vectors)
    assert {path: sha256_of_folder(path) for path in before} == before
    assert set(tmp_path.iterdir()) == set(before)


@pytest.mark.parametrize("words", [["-k", "0"], ["-k", "-3"], ["-k", "x"], ["--max-length", "0"]])
def test_numbers_that_are_none_give_the_usage(words: list[str]) -> None:
    result = run("search", "my.index", "x", *words)
    assert result.returncode == 2
    assert "must be a whole number above 0" in result.stderr


def test_who_reads_may_have_seen_enough(my_index: Path) -> None:
    command = f"{sys.executable} -m drama_models.cli search {my_index} x -k 96 --json | head -c 1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("[", "", 0)


def test_wrong_words_give_the_usage() -> None:
    result = run("serach", "x")
    assert result.returncode == 2
    assert "invalid choice" in result.stderr
    assert run("index", "--help").stdout.count("default:") >= 4
