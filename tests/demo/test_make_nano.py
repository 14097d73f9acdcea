"""The recipe behind `demo/nano` in miniature: a random BERT teaches, forty invented documents are learned from."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, BertTokenizer, LlamaModel

from demo.make_nano.__main__ import encode_bag, make_nano
from demo.make_nano.prepare import token_table
from demo.make_nano.recipe import NanoRecipe
from demo.make_nano.teacher import Teacher
from demo.make_nano.texts import pairs_of, texts_to_teach, training_documents, write_texts
from demo.make_nano.train import bag_states, drop_shared
from demo.make_nano.vocabulary import SPECIAL, empty_tokenizer
from drama_models.collection import Collection, Document
from drama_models.encoder import Encoder
from drama_models.provenance import read_provenance

if TYPE_CHECKING:
    from pathlib import Path

NOUNS = ("array", "axis", "graph", "matrix", "string", "file", "path", "value", "index", "table")
VERBS = ("return", "join", "sort", "count", "merge", "split", "find", "remove")
SUMMARY = "{verb} the {first} of every {second} given in order."
BODY = "The {first} is kept while the {second} may change its size.\n\nParameters\n----------\n{first} : {second}"


def document(number: int, package: str = "numpy") -> dict[str, str]:
    draw = random.Random(number)  # noqa: S311 - no secret
    words = {"verb": draw.choice(VERBS), "first": draw.choice(NOUNS), "second": draw.choice(NOUNS)}
    name = f"{package}.{words['verb']}_{words['first']}{number}"
    return {"_id": name, "title": name, "text": f"{SUMMARY}\n\n{BODY}".format(**words)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NOUNS, *VERBS, "the", "of", "every", "order", "##s"]
    (folder / "vocab.txt").write_text("\n".join([*words, *"abcdefghijklmnopqrstuvwxyz"]) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=64, **shape), add_pooling_layer=False).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> NanoRecipe:
    folder = tmp_path_factory.mktemp("nano")
    documents = [document(number) for number in range(40)]
    queries = {"one": "put two of them together"}
    Collection.write(folder / "collection", documents, queries, {"dev": {"one": {documents[3]["_id"]: 1}}})
    (folder / "work").mkdir()
    write_texts(folder / "work" / "comments.jsonl", ["here the graph is kept in order"])  # not those of all packages
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "heads": 2,
        "intermediate_size": 24,
        "max_length": 32,
        "vocabulary": 160,
    }
    steps = {"table_steps": 4, "layer_steps": 2, "batch_size": 8, "layer_batch_size": 8, "evaluate_every": 2}
    recipe = NanoRecipe(
        teacher=teacher,
        collection=folder / "collection",
        work=folder / "work",
        out=folder / "nano",
        taught_texts=30,
        **(shape | steps),
    )
    make_nano(recipe)
    return recipe


def test_the_made_folder_is_one_that_stock_sentence_transformers_agrees_on(made: NanoRecipe) -> None:
    texts = ["join two tables", "Return the axis of every array.", ""]
    ours = Encoder.from_pretrained(made.out, runtime="torch").encode_documents(texts)
    theirs = SentenceTransformer(str(made.out), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    record = read_provenance(made.out) or {}
    assert record["recipe"]["teacher"] == made.teacher.name
    assert record["figures"]["taught_texts"] == len((made.work / "taught.jsonl").read_text().splitlines())


def test_the_curve_has_a_line_for_every_measurement(made: NanoRecipe) -> None:
    lines = [json.loads(line) for line in (made.out / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert all(0 <= line["recall@100"] <= 1 for line in lines)


def test_the_start_is_a_bag_of_tokens(made: NanoRecipe) -> None:
    start = LlamaModel.from_pretrained(made.work / "start")
    encoder = SentenceTransformer(str(made.work / "with_table"), device="cpu")
    texts = ["join the table of every graph", "RandomForest"]
    table = encoder[0].auto_model.embed_tokens.weight.detach()  # type: ignore[operator, union-attr]
    tokenizer = encoder.tokenizer.backend_tokenizer
    torch.testing.assert_close(
        encode_bag(tokenizer, table, texts, 32), encoder.encode(texts, normalize_embeddings=True), atol=5e-3, rtol=0
    )
    ids = torch.arange(20)[None]
    states = start(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    torch.testing.assert_close(states, bag_states(start.embed_tokens.weight)[:20], atol=1e-2, rtol=0)


def test_names_are_cut_into_their_words() -> None:
    tokenizer = empty_tokenizer([*SPECIAL, "random", "forest", "http", "server", "_", ".", "2", "x", "##2"])
    for text in ("RandomForest", "random_forest", "Random forest"):
        assert [entry for entry in tokenizer.encode(text).tokens if entry.isalpha()] == ["random", "forest"]
    assert tokenizer.encode("HTTPServer.x2").tokens == ["http", "server", ".", "x", "##2"]
    assert tokenizer.encode("☃").tokens == [SPECIAL[3]]


def test_the_table_keeps_the_teachers_geometry_and_weighs_frequent_entries_down() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(30, 6)).astype(np.float32)
    vectors[0] = 0
    shares = np.full(30, 1e-9)
    table, projection = token_table(vectors, shares, 6)
    centred = vectors[1:] - vectors[1:].mean(axis=0)
    cosines = _cosines(centred)
    np.testing.assert_allclose(_cosines(table[1:]), cosines, atol=1e-4)
    assert not table[0].any()
    np.testing.assert_allclose(projection.T @ projection, np.eye(6), atol=1e-5)
    shares[7] = 1e-3  # halves its weight
    halved, _ = token_table(vectors, shares, 6)
    ratio = np.linalg.norm(halved, axis=1)[1:] / np.linalg.norm(table, axis=1)[1:]
    assert ratio[6] / ratio[5] == pytest.approx(0.5, rel=1e-4)


def test_a_teacher_embeds_a_text_alone_as_among_others(teacher: Path) -> None:
    model = Teacher(teacher)
    texts = ["join the graph", "order", "the array of every file in the table"]
    together = model.embed(texts)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(model.embed([text])[0], row, atol=1e-5)
    np.testing.assert_allclose(model.embed_entries(["order"]), together[1:2], atol=1e-5)
    assert not model.embed_entries([SPECIAL[0]]).any()


def test_packages_of_the_test_questions_teach_nothing(tmp_path: Path) -> None:
    rows = [document(number, package) for number, package in enumerate(("numpy", "pandas", "sklearn", "networkx"))]
    Collection.write(tmp_path / "collection", rows, {}, {})
    assert [row.id for row in training_documents(tmp_path / "collection")] == [rows[0]["_id"]]


def test_pairs_and_taught_texts_come_from_the_documents_and_from_the_seed() -> None:
    documents = [Document(row["_id"], row["title"], row["text"]) for row in map(document, range(50))]
    pairs = [pair for row in documents for pair in pairs_of(row, random.Random(1))]  # noqa: S311 - no secret
    text_of = {row.id: " ".join(row.content.split()) for row in documents}
    assert {pair.document_id for pair in pairs} == text_of.keys()
    assert all(" ".join(pair.query.split()).rstrip(".") in text_of[pair.document_id] for pair in pairs)
    comments = [f"comment number {number} about the order" for number in range(50)]
    taught = texts_to_teach(documents, comments, 40, seed=3)
    assert taught == texts_to_teach(documents, comments, 40, seed=3) != texts_to_teach(documents, comments, 40, seed=4)
    assert sum(text in comments for text in taught) == round(0.34 * 40)


def test_shared_tokens_leave_the_document_but_never_all_of_it() -> None:
    generator = np.random.default_rng(0)
    found = drop_shared(np.array([4, 5, 6, 5]), np.array([5, 9]), 1.0, generator)
    assert found.tolist() == [4, 6]
    assert drop_shared(np.array([4, 5, 6, 5]), np.array([5, 9]), 0.0, generator).tolist() == [4, 5, 6, 5]
    assert drop_shared(np.array([5, 5]), np.array([5]), 1.0, generator).tolist() == [5, 5]


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T
