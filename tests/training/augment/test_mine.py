"""Mined lists against brute force, killed runs against whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models import BM25, Collection, Encoder
from drama_models.bulk import encode_shards
from drama_models.errors import CollectionError, ModelFolderError
from drama_models.evaluation import read_run
from training.augment import mine as mining
from training.augment.mine import MineRecipe, mine, search_shards
from training.augment.runs import read_queries, stream_run, write_in_parts
from training.data.examples import TrainingExample, write_examples


def test_bm25_lists_are_those_of_one_process(collection_folder: Path, examples_file: Path, tmp_path: Path) -> None:
    recipe = MineRecipe(collection=collection_folder, examples=examples_file, out=tmp_path / "bm25.run", k=7, workers=2)
    queries = dict(read_queries(collection_folder, examples_file))
    assert mine(recipe) == len(queries)
    teacher = BM25((document.id, document.content) for document in Collection(collection_folder).documents())
    found = dict(stream_run(recipe.out))
    assert list(found) == list(queries)
    for key, text in list(queries.items())[::10]:
        (expected,) = teacher.search([text], 7)
        assert [document for document, _ in found[key]] == [document for document, _ in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bm25.run", "bm25.run.provenance.json"]


def test_an_encoder_is_searched_exactly_shard_by_shard(
    retriever_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(retriever_folder)
    documents = [(document.id, document.content) for document in Collection(collection_folder).documents()]
    encode_shards(encoder, documents, tmp_path / "vectors", shard_documents=25)
    queries = Collection(collection_folder).queries()
    found = search_shards(encoder, tmp_path / "vectors", list(queries.values()), 10)
    scores = (
        encoder.encode_queries(list(queries.values())) @ encoder.encode_documents([text for _, text in documents]).T
    )
    for hits, row in zip(found, scores, strict=True):
        np.testing.assert_allclose([score for _, score in hits], np.sort(row)[::-1][:10], atol=1e-5)
        assert len({document for document, _ in hits}) == 10
    recipe = MineRecipe(collection=collection_folder, out=tmp_path / "dense.run", teacher=str(retriever_folder), k=500)
    assert mine(recipe) == len(queries)
    assert {len(hits) for _, hits in stream_run(recipe.out)} == {len(documents)}
    assert (tmp_path / "dense.run.vectors" / "manifest.json").is_file()


def test_an_encoder_reads_titles_as_it_was_trained_to(
    separated_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    documents = list(Collection(collection_folder).documents())
    recipe = MineRecipe(
        collection=collection_folder, out=tmp_path / "dense.run", teacher=str(separated_folder), k=len(documents)
    )
    mine(recipe)
    encoder = Encoder.from_pretrained(separated_folder)
    vectors = encoder.encode_documents([f"{document.title}:\n{document.text}" for document in documents])
    for key, text in Collection(collection_folder).queries().items():
        scores = (vectors @ encoder.encode_queries(text)[0]).tolist()
        expected = dict(zip((document.id for document in documents), scores, strict=True))
        assert read_run(recipe.out)[key] == pytest.approx(expected, abs=1e-5)


def test_a_killed_call_goes_on_and_ends_with_the_same_file(tmp_path: Path) -> None:
    queries = [(f"q{number}", f"text {number}") for number in range(10)]
    searched: list[str] = []

    def search(block: list[tuple[str, str]]) -> list[tuple[str, list[tuple[str, float]]]]:
        if searched.count("q6") == 0 and block[0][0] == "q6":
            searched.append("q6")
            raise KeyboardInterrupt
        searched.extend(key for key, _ in block)
        return [(key, [("a", 2.0), ("b", 1.0)]) for key, _ in block]

    settings: dict[str, Any] = {"name": "toy", "part_queries": 3}
    with pytest.raises(KeyboardInterrupt):
        write_in_parts(tmp_path / "run", queries, search, {"k": 2}, **settings)
    assert not (tmp_path / "run").exists()
    assert write_in_parts(tmp_path / "run", queries, search, {"k": 2}, **settings) == 10
    assert searched.count("q0") == 1  # finished parts are kept
    assert write_in_parts(tmp_path / "whole", queries, search, {"k": 2}, **settings) == 10
    assert (tmp_path / "run").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]


def test_a_run_from_elsewhere_is_checked_and_cut(collection_folder: Path, tmp_path: Path) -> None:
    first = next(iter(Collection(collection_folder).queries()))
    lines = [f"{first} Q0 d{number} {number} {1 / (number + 1)} x\n" for number in range(5)]
    (tmp_path / "other.run").write_text("".join(reversed(lines)), encoding="utf-8")
    recipe = MineRecipe(collection=collection_folder, out=tmp_path / "cut", teacher=str(tmp_path / "other.run"), k=3)
    assert mine(recipe) == 1
    assert [document for document, _ in dict(stream_run(recipe.out))[first]] == ["d0", "d1", "d2"]
    for line, message in [
        ("nobody Q0 d1 1 1.0 x\n", r"query 'nobody' is not among the queries; pass the examples"),
        (f"{first} Q0 d999 1 1.0 x\n", r"document 'd999' is not in the collection; pass the one"),
        (f"{first} Q0 d1 1 2.0 x\n{first} Q0 d1 2 1.0 x\n", r"line 2: document 'd1' occurs twice in the list of query"),
        (f"{first} Q0 d1 1 nan x\n", r"line 1: the score of document 'd1' is nan; it must be finite"),
        (f"{first} Q0 d2 1 1 x\n{first} Q0 d1 1 -inf x\n", r"line 2: the score of document 'd1' is -inf"),
        (f"{first} Q0 d1 1 1.0 caf\udce9\n", r"line 1: expected .* in UTF-8, found .*caf\ufffd'"),
        ("cut line\n", r"line 1: expected `query Q0 document rank score name`"),
        (f"{first} Q0 d1 1 1.0 x\nq-sort Q0 d1 1 1 x\n{first} Q0 d2 1 1 x\n", "must stand together; sort the file"),
    ]:
        (tmp_path / "other.run").write_bytes(line.encode("utf-8", "surrogateescape"))
        with pytest.raises(CollectionError, match=message):
            mine(recipe)
    assert len(read_run(recipe.out)[first]) == 3  # the run that was there stays


def test_what_cannot_be_mined_is_said(collection_folder: Path, tmp_path: Path) -> None:
    twice = TrainingExample(query_id="q", query="x", positive_ids=["d1"])
    write_examples(tmp_path / "twice.jsonl", [twice, twice])
    settings: dict[str, Any] = {"collection": collection_folder, "out": tmp_path / "run"}
    with pytest.raises(CollectionError, match="query id 'q' is used twice"):
        mine(MineRecipe(examples=tmp_path / "twice.jsonl", **settings))
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(CollectionError, match="There are no queries; pass --examples"):
        mine(MineRecipe(examples=tmp_path / "none.jsonl", **settings))
    with pytest.raises(ModelFolderError):
        mine(MineRecipe(teacher=str(tmp_path / "absent"), **settings))
    with pytest.raises(ValueError, match="try k=50"):
        MineRecipe(k=0, **settings)
    assert not (tmp_path / "run").exists()
    assert mining._TEACHER == []
