"""The retriever shipped in `demo/nano`: small, whole, bidirectional, and of use without any training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModel

from demo.make_nano.card import CARD_FILE, write_nano_card
from drama_models.cli import main as drama
from drama_models.collection import Collection
from drama_models.encoder import Encoder
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


def test_a_stock_model_lets_the_first_token_see_the_last() -> None:
    model = AutoModel.from_pretrained(NANO)
    ids = np.array([[0, 900, 901, 902, 1], [0, 900, 901, 903, 1]])
    import torch

    states = model(input_ids=torch.from_numpy(ids)).last_hidden_state
    assert states.dtype == torch.float32
    assert (states[0, 1] - states[1, 1]).abs().max() > 1e-6  # a token before the one that differs


def test_the_code_that_travels_with_it_is_the_package_s_own() -> None:
    travelling = (NANO / "modeling_drama.py").read_text(encoding="utf-8")
    assert travelling == Path("drama_models/modeling_drama.py").read_text(encoding="utf-8")


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
    assert written == write_nano_card(NANO, results)
    for found in results["systems"].values():
        assert f"{found['ndcg@10']:.3f}" in written
