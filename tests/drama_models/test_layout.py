"""Modules of sentence-transformers folders: those that are computed here against the stock library, others refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, Transformer

from drama_models import Encoder
from drama_models.errors import ModelFolderError
from tests.conftest import TEXTS
from tests.drama_models.published_models import write_dragon

DOCUMENTS = [text * (1 + number % 3) for number, text in enumerate(TEXTS[:7])]
QUERIES = ["put tables together", "digest", "the shortest way between two nodes"]


@pytest.fixture(scope="module")
def dragon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two BERTs of 32 numbers."""
    return write_dragon(tmp_path_factory.mktemp("dragon"))


def test_modules_around_a_router_are_those_of_both_routes(dragon: tuple[Path, Path], tmp_path: Path) -> None:
    query, document = ([Transformer(str(folder))] for folder in dragon)
    modules = [Router.for_query_document(query, document), Pooling(32, pooling_mode="mean"), Normalize()]
    stock = SentenceTransformer(modules=modules, device="cpu")
    stock.save_pretrained(str(tmp_path / "router"))
    encoder = Encoder.from_pretrained(tmp_path / "router")
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), stock.encode_query(QUERIES), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), stock.encode_document(DOCUMENTS), atol=1e-5)


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ([Pooling(32), Dense(32, 32)], "Transformer, Pooling, Dense; supported are Transformer, Pooling, Normalize"),
        ([Pooling(32), Normalize(), LayerNorm(32)], "Transformer, Pooling, Normalize, LayerNorm;"),
        ([Normalize(), Pooling(32)], "Transformer, Normalize, Pooling;"),
        ([], "Transformer;"),
    ],
)
def test_modules_that_are_not_computed_here_are_named(
    dragon: tuple[Path, Path], tmp_path: Path, after: list[Any], named: str
) -> None:
    stock = SentenceTransformer(modules=[Transformer(str(dragon[0])), *after], device="cpu")
    stock.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ModelFolderError, match=rf"modules\.json makes vectors by {named}"):
        Encoder.from_pretrained(tmp_path / "model")


def test_a_module_of_another_package_is_refused(dragon: tuple[Path, Path], tmp_path: Path) -> None:
    SentenceTransformer(modules=[Transformer(str(dragon[0])), Pooling(32)]).save_pretrained(str(tmp_path / "model"))
    path = tmp_path / "model" / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    modules[1]["type"] = "pooling_of_theirs.Pooling"
    path.write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"Transformer, pooling_of_theirs\.Pooling;"):
        Encoder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("after", [[], [Normalize()]])
def test_a_folder_that_cuts_its_vectors_is_taken_at_its_word(
    dragon: tuple[Path, Path], tmp_path: Path, after: list[Any]
) -> None:
    modules = [Transformer(str(dragon[0])), Pooling(32), *after]
    stock = SentenceTransformer(modules=modules, device="cpu", truncate_dim=12)
    stock.save_pretrained(str(tmp_path / "model"))
    encoder, expected = Encoder.from_pretrained(tmp_path / "model"), stock.encode(DOCUMENTS)
    if after:  # sentence-transformers cuts after normalising, which leaves no cosines
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert encoder.dim == 12
    np.testing.assert_allclose(encoder.encode_documents(DOCUMENTS), expected, atol=1e-4)
    assert Encoder.from_pretrained(tmp_path / "model", dim=20).encode_documents(DOCUMENTS).shape[1] == 20
    assert encoder.encode_documents(DOCUMENTS, dim=32).shape[1] == 32
