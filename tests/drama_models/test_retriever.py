"""Hybrid search: the fused order against the sum written out by hand, and what cannot be fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models import BM25, Collection, Encoder, Index, Retriever
from drama_models.cli import main
from drama_models.errors import IndexFolderError
from drama_models.fusion import ranks, reciprocal_rank_fusion
from tests.conftest import TEXTS

QUESTION = "digest of a file"
IDS = [f"d{number}" for number in range(len(TEXTS))]


@pytest.fixture(scope="module")
def encoder(release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder)


@pytest.fixture(scope="module")
def index(encoder: Encoder) -> Index:
    index = Index(48)
    index.add(IDS, encoder.encode_documents(TEXTS))
    return index


def test_fusion_adds_reciprocal_ranks_and_keeps_ties_in_order() -> None:
    fused = reciprocal_rank_fusion([{"b": 1, "a": 2}, {"c": 1, "a": 2}])
    assert [document for document, _ in fused] == ["a", "b", "c"]
    assert dict(fused) == pytest.approx({"a": 2 / 62, "b": 1 / 61, "c": 1 / 61})
    assert ranks([("x", 9.0), ("y", 9.0)]) == {"x": 1, "y": 2}
    with pytest.raises(ValueError, match=r"constant=-1 must be above -1; 60 is"):
        reciprocal_rank_fusion([], constant=-1)


def test_hybrid_search_ranks_by_the_sum_over_both_rankings(encoder: Encoder, index: Index) -> None:
    bm25 = BM25(zip(IDS, TEXTS, strict=True))
    hits = Retriever(encoder, index, bm25=bm25, fusion_constant=10).search(QUESTION, k=7)
    dense = [document for document, _ in index.search(encoder.encode_queries(QUESTION), 100)[0]]
    lexical = [document for document, _ in bm25.search([QUESTION], 100)[0]]
    expected = {
        document: sum(1 / (10 + ranking.index(document) + 1) for ranking in (dense, lexical) if document in ranking)
        for document in IDS
    }
    assert [score for _, score in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:7])
    assert {document: expected[document] for document, _ in hits} == pytest.approx(dict(hits))
    assert set(hits) != set(Retriever(encoder, index).search(QUESTION, k=7))


def test_a_run_equals_the_searches_one_by_one(encoder: Encoder, index: Index) -> None:
    retriever = Retriever(encoder, index, bm25=BM25(zip(IDS, TEXTS, strict=True)))
    questions = {"q1": QUESTION, "q2": "zzz"}  # of the second, BM25 finds nothing
    run = retriever.run(questions, k=5)
    for query, question in questions.items():
        assert list(run[query]) == [document for document, _ in retriever.search(question, k=5)]
        assert list(run[query].values()) == pytest.approx([score for _, score in retriever.search(question, k=5)])


@pytest.mark.parametrize("k", [0, 2.5, True, "3", None])
def test_a_number_of_hits_that_is_none_is_refused_before_anything_is_encoded(
    encoder: Encoder, index: Index, k: Any
) -> None:
    bm25 = BM25(zip(IDS, TEXTS, strict=True))
    for search in (Retriever(encoder, index).search, Retriever(encoder, index, bm25=bm25).search, bm25.search):
        with pytest.raises(ValueError, match=f"k={k!r} must be a whole number of at least 1"):
            search(QUESTION, k)
    with pytest.raises(ValueError, match=f"k={k!r} must be a whole number of at least 1"):
        index.search(np.ones((1, 48), dtype=np.float32), k)


def test_documents_of_a_collection_are_read_with_the_models_separator(
    separated_folder: Path, collection_folder: Path
) -> None:
    encoder, documents = Encoder.from_pretrained(separated_folder), list(Collection(collection_folder).documents())
    contents = [f"{document.title}:\n{document.text}" for document in documents]
    assert [encoder.content_of(document) for document in documents] == contents
    run = Retriever.of_documents(encoder, documents).run({"q": QUESTION}, k=len(documents))
    scores = encoder.encode_queries(QUESTION) @ encoder.encode_documents(contents).T
    assert run["q"] == pytest.approx(
        dict(zip((row.id for row in documents), scores[0].tolist(), strict=True)), abs=1e-5
    )


def test_a_collection_in_memory_is_fused_with_the_constant_that_is_given(
    encoder: Encoder, collection_folder: Path
) -> None:
    documents = list(Collection(collection_folder).documents())
    bm25 = BM25((document.id, document.content) for document in documents)
    ours = Retriever.of_documents(encoder, documents, bm25=bm25, fusion_constant=10)
    index = Index(48)
    index.add([row.id for row in documents], encoder.encode_documents([encoder.content_of(row) for row in documents]))
    assert ours.search(QUESTION) == Retriever(encoder, index, bm25=bm25, fusion_constant=10).search(QUESTION)
    with pytest.raises(ValueError, match="'d0' is in the index already"):
        Retriever.of_documents(encoder, [documents[0], documents[0]])


def test_bm25_over_other_documents_is_refused(encoder: Encoder, index: Index) -> None:
    with pytest.raises(IndexFolderError, match="1 documents that the index does not, such as 'new'"):
        Retriever(encoder, index, bm25=BM25([("d1", TEXTS[1]), ("new", TEXTS[2])]))


def test_search_command_fuses_with_bm25(
    release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = str(tmp_path / "my.index")
    assert main(["index", str(collection_folder), opened, "--model", str(release_folder)]) == 0
    capsys.readouterr()
    assert main(["search", opened, QUESTION, "--bm25", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    documents = Collection(collection_folder).documents()
    retriever = Retriever(
        Encoder.from_pretrained(release_folder),
        Index.load(opened),
        bm25=BM25((document.id, document.content) for document in documents),
    )
    assert [hit["id"] for hit in hits] == [document for document, _ in retriever.search(QUESTION)]
    assert main(["evaluate", str(release_folder), str(collection_folder), "--bm25", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 8
