"""Vectors of a collection that changes, against encoding all of it at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models import Collection, Encoder
from drama_models.bulk import MANIFEST
from drama_models.pooling import finish
from training.augment.mine import search_vectors
from training.specialise.vectors import PassageVectors


def write(folder: Path, texts: dict[str, str]) -> Path:
    Collection.write(folder, ({"_id": key, "title": "", "text": text} for key, text in texts.items()))
    return folder


@pytest.fixture(scope="module")
def encoder(retriever_folder: Path) -> Encoder:
    return Encoder.from_pretrained(retriever_folder)


def as_table(vectors: PassageVectors) -> dict[str, Any]:
    return {key: row for ids, rows in vectors.read() for key, row in zip(ids, np.array(rows), strict=True)}


def test_only_what_is_new_is_encoded_and_what_is_gone_is_passed_over(encoder: Encoder, tmp_path: Path) -> None:
    texts = {f"d{number}": f"text {number} of many" for number in range(30)}
    first = PassageVectors(encoder, tmp_path / "vectors", write(tmp_path / "a", texts))
    assert first.encode() == 30
    assert PassageVectors(encoder, tmp_path / "vectors", tmp_path / "a").encode() == 0
    changed = {"new": "a new one"} | {key: text for key, text in texts.items() if key != "d3"} | {"d7": "changed"}
    second = PassageVectors(encoder, tmp_path / "vectors", write(tmp_path / "b", changed))
    assert second.encode() == 2
    found = as_table(second)
    assert found.keys() == changed.keys()
    whole = dict(zip(changed, encoder.encode_documents(list(changed.values())), strict=True))
    for key, row in found.items():
        np.testing.assert_allclose(row, whole[key], atol=1e-5, err_msg=key)  # other batch mates, other rounding
    assert as_table(PassageVectors(encoder, tmp_path / "vectors", tmp_path / "a")).keys() == texts.keys()


def test_passages_are_read_with_the_models_separator(
    separated_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    encoder, documents = Encoder.from_pretrained(separated_folder), list(Collection(collection_folder).documents())
    vectors = PassageVectors(encoder, tmp_path / "vectors", collection_folder)
    vectors.encode()
    expected = encoder.encode_documents([f"{document.title}:\n{document.text}" for document in documents])
    found = as_table(vectors)
    np.testing.assert_allclose([found[document.id] for document in documents], expected, atol=1e-5)


def test_a_part_that_was_not_finished_is_gone_on_with_or_forgotten(encoder: Encoder, tmp_path: Path) -> None:
    texts = {f"d{number}": f"text {number}" for number in range(12)}
    collection = write(tmp_path / "a", texts)
    vectors = PassageVectors(encoder, tmp_path / "vectors", collection)
    vectors.encode()
    whole = as_table(vectors)
    (vectors.folder / "0000" / MANIFEST).unlink()  # as a kill leaves it
    assert PassageVectors(encoder, tmp_path / "vectors", collection).encode() == 0
    assert all((as_table(vectors)[key] == row).all() for key, row in whole.items())
    (vectors.folder / "0000" / MANIFEST).unlink()
    shutil.rmtree(vectors.folder / "0000")
    fewer = PassageVectors(encoder, tmp_path / "vectors", write(tmp_path / "b", {"d1": "another text"}))
    assert fewer.encode() == 1
    assert as_table(fewer).keys() == {"d1"}


def test_search_is_that_of_all_products(encoder: Encoder, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(50, 8)).astype(np.float32)
    queries = generator.normal(size=(4, 8)).astype(np.float32)
    shards = [([f"d{row}" for row in part], rows[part]) for part in np.split(np.arange(50), [7, 9, 40])]
    products = queries @ rows.T
    for found, scores in zip(search_vectors(queries, shards, 60), products, strict=True):
        order = [f"d{row}" for row in np.argsort(-scores)]
        assert [key for key, _ in found] == order  # all 50, though 60 were asked for
        np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1], atol=1e-5)


def test_cut_vectors_are_those_of_the_encoder(encoder: Encoder) -> None:
    texts = ["put two tables together", "a digest"]
    full = encoder.encode_queries(texts)
    for dim in (48, 16):
        np.testing.assert_allclose(finish(full, dim, normalise=True), encoder.encode_queries(texts, dim=dim), atol=1e-6)
    np.testing.assert_array_equal(finish(full, 16, normalise=False), full[:, :16])
