"""mteb's own evaluation of our encoder, on a BEIR folder, against our evaluation: two programs, the same figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from drama_models import Collection, Encoder, Index, Retriever
from drama_models.cli import main
from drama_models.errors import CollectionError, MissingExtraError
from drama_models.evaluation import evaluate
from drama_models.mteb_encoder import MtebEncoder, beir_task, evaluate_on_mteb, model_meta

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(find_spec("mteb") is None, reason="needs the extra `mteb`")
QUERIES = ["join on a column", "sort rows", "mean of numbers"]


@pytest.fixture(scope="module")
def encoder(release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder)


@pytest.fixture
def graded(collection_folder: Path, tmp_path: Path) -> Path:
    """The small collection with grades of 1 and 2 and a query that is not judged."""
    collection = Collection(collection_folder)
    documents = [{"_id": row.id, "title": row.title, "text": row.text} for row in collection.documents()]
    qrels = {
        query: {document: 1 + number % 2 for number, document in enumerate(judged)}
        for query, judged in collection.qrels("test").items()
    }
    queries = collection.queries() | {"not judged": "nothing in particular"}
    Collection.write(tmp_path / "graded", documents, queries, {"test": qrels})
    return tmp_path / "graded"


def our_figures(encoder: Encoder, folder: Path) -> dict[str, float]:
    collection = Collection(folder)
    documents, qrels, queries = list(collection.documents()), collection.qrels("test"), collection.queries()
    index = Index(encoder.dim)
    index.add([row.id for row in documents], encoder.encode_documents([row.content for row in documents]))
    return evaluate(Retriever(encoder, index).run({query: queries[query] for query in qrels}, 1000), qrels)


@pytest.mark.parametrize("dim", [48, 16])
def test_mteb_gives_our_figures_to_four_decimals(release_folder: Path, graded: Path, dim: int) -> None:
    encoder = Encoder.from_pretrained(release_folder, dim=dim)
    figures = evaluate_on_mteb(encoder, str(release_folder), [str(graded)])
    ours = our_figures(encoder, graded)
    assert 0.05 < ours["ndcg@10"] < 0.95
    assert list(figures) == ["graded"]
    for name, value in ours.items():
        assert figures["graded"][name] == pytest.approx(value, abs=5e-5), name
    assert figures["graded"]["main_score"] == figures["graded"]["ndcg@10"]


def batches(texts: list[str]) -> Iterator[dict[str, list[str]]]:
    for start in range(0, len(texts), 2):
        yield {"text": texts[start : start + 2]}


def test_queries_get_the_query_prompt_and_everything_else_the_document_prompt(encoder: Encoder, graded: Path) -> None:
    from mteb.types import PromptType

    wrapped, task = MtebEncoder.of(encoder, "owner/name"), beir_task(graded).metadata
    settings: dict[str, Any] = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
    for kind, expected in (
        (PromptType.query, encoder.encode_queries(QUERIES)),
        (PromptType.document, encoder.encode_documents(QUERIES)),
        (None, encoder.encode_documents(QUERIES)),
    ):
        np.testing.assert_array_equal(wrapped.encode(batches(QUERIES), prompt_type=kind, **settings), expected)
    assert np.abs(encoder.encode_queries(QUERIES) - encoder.encode_documents(QUERIES)).max() > 1e-3


def test_similarity_is_the_cosine_of_unit_vectors(encoder: Encoder) -> None:
    from mteb.models import EncoderProtocol

    wrapped, vectors = MtebEncoder.of(encoder, "owner/name"), encoder.encode_documents(QUERIES)
    expected = [[float(np.dot(left, right)) for right in vectors] for left in vectors]
    np.testing.assert_allclose(wrapped.similarity(vectors, vectors), expected, atol=1e-6)
    np.testing.assert_allclose(wrapped.similarity_pairwise(vectors, vectors), 1, atol=1e-6)
    assert isinstance(wrapped, EncoderProtocol)


def test_meta_says_what_the_release_holds_and_loads_it_again(encoder: Encoder, release_folder: Path) -> None:
    meta = model_meta(encoder, str(release_folder))
    assert (meta.name, meta.license, meta.max_tokens) == ("drama-models/release", "apache-2.0", 64)
    assert (meta.embed_dim, meta.experiment_kwargs) == ([16, 48], None)
    assert meta.n_parameters is not None
    assert meta.n_embedding_parameters is not None
    assert 0 < meta.n_embedding_parameters < meta.n_parameters
    assert meta.use_instructions
    assert model_meta(encoder, "owner/name").name == "owner/name"
    loaded: Any = meta.load_model()  # as mteb does: by the name of its tables and the revision
    np.testing.assert_array_equal(loaded.encoder.encode_documents(QUERIES), encoder.encode_documents(QUERIES))


def test_a_folder_with_a_graph_alone_has_no_count_of_parameters(release_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(release_folder, tmp_path / "graph", ignore=shutil.ignore_patterns("*.safetensors"))
    meta = model_meta(Encoder.from_pretrained(folder), str(folder))
    assert meta.n_parameters is None
    assert meta.memory_usage_mb == round((folder / "onnx" / "model.onnx").stat().st_size / 2**20, 1)
    assert "safetensors" not in meta.framework


def test_command_takes_a_folder_as_a_task(
    release_folder: Path, graded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(release_folder), "--mteb", str(graded), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["graded"]) == {"main_score", "ndcg@10", "recall@100", "mrr@10", "map"}
    assert main(["evaluate", str(release_folder)]) == 2
    assert "--mteb" in capsys.readouterr().err
    assert main(["evaluate", str(release_folder), str(graded), "--mteb", str(graded)]) == 2
    assert "--mteb takes no BEIR folder beside it; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--bm25", "en"], "no --bm25;"),
        (["-k", "10"], "no -k;"),
        (["--task", "query", "--run", "a.run"], "no --task, no --run;"),
        (["--drop-identical-ids"], "no --drop-identical-ids;"),
    ],
)
def test_options_that_mteb_would_ignore_are_refused(
    release_folder: Path, graded: Path, capsys: pytest.CaptureFixture[str], given: list[str], named: str
) -> None:
    assert main(["evaluate", str(release_folder), "--mteb", str(graded), *given]) == 2
    assert named in capsys.readouterr().err


def test_what_mteb_does_not_know_is_one_sentence(encoder: Encoder) -> None:
    with pytest.raises(CollectionError, match="'NFCorpse' is no task of mteb and no BEIR folder"):
        evaluate_on_mteb(encoder, "owner/name", ["NFCorpse"])


def test_two_folders_of_one_name_are_refused(encoder: Encoder, graded: Path, tmp_path: Path) -> None:
    other = shutil.copytree(graded, tmp_path / "other" / graded.name)
    with pytest.raises(CollectionError, match="Two of the tasks are called 'graded'; evaluate them one by one"):
        evaluate_on_mteb(encoder, "owner/name", [str(graded), str(other)])


def test_mteb_is_loaded_only_where_it_is_used() -> None:
    program = "import sys, drama_models.mteb_encoder; sys.exit('mteb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_mteb_the_extra_is_named(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"drama-models\[mteb\]"):
        evaluate_on_mteb(encoder, "owner/name", ["NFCorpus"])
