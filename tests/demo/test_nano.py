"""The retriever shipped in `demo/nano`: small, whole, and of use without any training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from demo.make_nano.card import CARD_FILE, write_nano_card
from drama_models.cli import main as drama
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.model_folder import fingerprint
from drama_models.provenance import read_provenance
from drama_models.sample_texts import SAMPLE_TEXTS

NANO = Path("demo/nano")
RESULT = Path("benchmarks/results/nano.json")
MEGABYTES = 15


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(NANO, runtime="torch")


def test_the_folder_is_small_and_its_weights_are_the_parameters_it_names() -> None:
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1_000_000
    with safe_open(NANO / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - not a dictionary
    assert sum(int(np.prod(shape)) for shape in shapes) == (read_provenance(NANO) or {})["figures"]["parameters"]


def test_vectors_are_finite_of_unit_length_and_do_not_depend_on_batch_mates(encoder: Encoder) -> None:
    vectors = encoder.encode_documents(SAMPLE_TEXTS[:-1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = encoder.encode_documents([SAMPLE_TEXTS[2]])
    np.testing.assert_allclose(alone[0], vectors[2], atol=1e-5)


def test_stock_sentence_transformers_agrees(encoder: Encoder) -> None:
    theirs = SentenceTransformer(str(NANO), device="cpu").encode(SAMPLE_TEXTS)
    np.testing.assert_allclose(encoder.encode_documents(SAMPLE_TEXTS), theirs, atol=2e-5)


def test_a_stock_automodel_loads_every_weight() -> None:
    _, report = AutoModel.from_pretrained(NANO, add_pooling_layer=False, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_it_runs_without_torch_and_agrees_with_it(encoder: Encoder) -> None:
    lean = Encoder.from_pretrained(NANO)
    assert "ONNX Runtime from safetensors" in lean.runtime.description
    texts = SAMPLE_TEXTS[:-1]
    np.testing.assert_allclose(lean.encode_documents(texts), encoder.encode_documents(texts), atol=2e-5)


def test_words_of_another_wording_are_nearer_than_other_subjects(encoder: Encoder) -> None:
    (query,) = encoder.encode_queries(["put two lists one after the other"])
    scores = encoder.encode_documents(["concatenate sequences", "draw a random number", "hash a password"]) @ query
    assert scores.argmax() == 0


@pytest.mark.parametrize("bm25", [[], ["--bm25"]])
def test_drama_search_answers_with_it_untrained(
    bm25: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "heapq.nlargest": "Find the n largest elements in a dataset.",
        "shutil.rmtree": "Recursively delete a directory tree.",
        "json.dumps": "Serialize an object to a JSON formatted string.",
    }
    rows = [{"_id": name, "title": name, "text": text} for name, text in texts.items()]
    Collection.write(tmp_path / "docs", rows, {}, {})
    assert drama(["index", str(tmp_path / "docs"), str(tmp_path / "index"), "--model", str(NANO)]) == 0
    capsys.readouterr()
    question = "remove a folder and everything in it"
    assert drama(["search", str(tmp_path / "index"), question, "--json", *bm25]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["id"] == "shutil.rmtree"


def test_the_card_is_the_one_its_provenance_and_results_give() -> None:
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    written = CARD_FILE.read_text(encoding="utf-8")
    assert results["model"] == fingerprint(NANO), "the figures are of other weights: python -m benchmarks.nano"
    assert written == write_nano_card(NANO, results)
    for found in results["systems"].values():
        assert f"{found['ndcg@10']:.3f}" in written
