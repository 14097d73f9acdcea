"""The recipe behind `demo/nano` in miniature: a random BERT teaches what is left of it after pruning."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from demo.make_nano.__main__ import CHECKPOINT, make_nano
from demo.make_nano.dev_curve import DevPool
from demo.make_nano.recipe import NanoRecipe
from demo.make_nano.student import kept_weights
from demo.make_nano.teacher import Teacher, embed_to_disk
from demo.make_nano.texts import texts_to_teach, training_documents, write_texts
from demo.make_nano.train import batches_of, rate_at
from demo.make_nano.vocabulary import choose_entries, open_teacher_tokenizer, rows_of, trimmed_tokenizer
from drama_models.collection import Collection, Document
from drama_models.encoder import Encoder
from drama_models.provenance import read_provenance
from drama_models.runtimes.bert_shape import WORDS

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

NOUNS = ("array", "axis", "graph", "matrix", "string", "file", "path", "value", "index", "table")
VERBS = ("return", "join", "sort", "count", "merge", "split", "find", "remove")
RARE = "of every"  # entries that a small vocabulary has no room for
SUMMARY = "{verb} the {first} of every {second} given in order."
COMMENTS = [f"here the {noun} is kept in order" for noun in NOUNS]
BODY = "The {first} is kept while the {second} may change its size.\n\nParameters\n----------\n{first} : {second}"


def document(number: int, package: str = "numpy") -> dict[str, str]:
    draw = random.Random(number)  # noqa: S311 - no secret
    words = {"verb": draw.choice(VERBS), "first": draw.choice(NOUNS), "second": draw.choice(NOUNS)}
    name = f"{package}.{words['verb']}_{words['first']}{number}"
    return {"_id": name, "title": name, "text": f"{SUMMARY}\n\n{BODY}".format(**words)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as sentence-transformers writes it, of three random layers."""
    work, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("teacher")
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, "the", *NOUNS, *VERBS, *RARE.split(), "random"]
    words += ["forest", *(f"##{sign}" for sign in signs if sign.isalnum())]
    (work / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), num_hidden_layers=3, initializer_range=0.2, **shape)
    BertModel(config, add_pooling_layer=False).save_pretrained(work)
    BertTokenizer(vocab=str(work / "vocab.txt")).save_pretrained(work)
    transformer = Transformer(str(work), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(24, "mean"), Normalize()], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer(teacher: Path) -> Tokenizer:
    return open_teacher_tokenizer(teacher)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> NanoRecipe:
    folder = tmp_path_factory.mktemp("nano")
    documents = [document(number) for number in range(40)]
    queries = {"one": "put two of them together"}
    Collection.write(folder / "collection", documents, queries, {"dev": {"one": {documents[3]["_id"]: 1}}})
    (folder / "work").mkdir()
    write_texts(folder / "work" / "comments.jsonl", COMMENTS)  # not those of all packages
    return NanoRecipe(
        teacher=teacher,
        collection=folder / "collection",
        work=folder / "work",
        out=folder / "nano",
        layers=[0, 2],
        vocabulary=125,
        max_length=32,
        taught_texts=30,
        epochs=4,
        batch_size=8,
        evaluate_every=4,
    )


@pytest.fixture(scope="module")
def made(recipe: NanoRecipe) -> NanoRecipe:
    make_nano(recipe)
    return recipe


def test_the_made_folder_is_one_that_stock_sentence_transformers_agrees_on(made: NanoRecipe) -> None:
    texts = ["join two tables", "RandomForest: return the axis of every array.", ""]
    theirs = SentenceTransformer(str(made.out), device="cpu").encode(texts)
    for runtime in ("onnx", "torch"):
        ours = Encoder.from_pretrained(made.out, runtime=runtime).encode_documents(texts)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    record = read_provenance(made.out) or {}
    assert record["recipe"]["teacher"] == made.teacher.name
    assert record["figures"]["taught_texts"] == len((made.work / "taught.jsonl").read_text().splitlines())


def test_the_student_comes_nearer_to_the_teacher(made: NanoRecipe) -> None:
    lines = [json.loads(line) for line in (made.out / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 12, 16]
    assert lines[-1]["distance"] < 0.7 * lines[1]["distance"]
    assert all(0 <= line["recall@100"] <= 1 for line in lines)


def test_a_killed_run_goes_on_to_the_same_weights(
    made: NanoRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = replace(made, work=tmp_path / "work", out=tmp_path / "nano")
    again.work.mkdir()
    write_texts(again.work / "comments.jsonl", COMMENTS)
    monkeypatch.setattr("demo.make_nano.train.KEEP_EVERY", 4)
    measured = DevPool.measure

    def killed_at_the_third(self: DevPool, encode: Any) -> dict[str, float]:
        if (again.work / CHECKPOINT).is_file() and len((again.work / "log.jsonl").read_text().splitlines()) == 2:
            raise KeyboardInterrupt
        return measured(self, encode)

    with monkeypatch.context() as patched:
        patched.setattr(DevPool, "measure", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make_nano(again)
    make_nano(again)
    theirs, ours = load_file(made.out / "model.safetensors"), load_file(again.out / "model.safetensors")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_with_all_layers_and_words_kept_the_student_is_the_teacher(teacher: Path, tokenizer: Tokenizer) -> None:
    state = load_file(teacher / "model.safetensors")
    everything = rows_of(tokenizer, sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__))
    kept = kept_weights(state, everything, [0, 1, 2], 512)
    assert all(torch.equal(value, state[name]) for name, value in kept.items())
    fewer = kept_weights(state, [7, 3], [0, 2], 16)
    torch.testing.assert_close(fewer[WORDS], state[WORDS][[7, 3]], rtol=0, atol=0)
    name = "output.dense.weight"
    assert torch.equal(fewer[f"encoder.layer.1.{name}"], state[f"encoder.layer.2.{name}"])
    assert f"encoder.layer.2.{name}" not in fewer


def test_a_dropped_entry_is_spelled_with_kept_ones(tokenizer: Tokenizer) -> None:
    texts = [f"{noun} {verb} random forest" for noun in NOUNS for verb in VERBS]
    size = tokenizer.get_vocab_size() - len(RARE.split())
    entries = choose_entries(tokenizer, texts, size)
    assert len(entries) == size
    assert set(tokenizer.get_vocab()) - set(entries) == set(RARE.split())
    trimmed = trimmed_tokenizer(tokenizer, entries)
    found = trimmed.encode("Sort RandomForest every☃")
    assert found.tokens == ["[CLS]", "sort", "random", "forest", "[UNK]", "[SEP]"]
    assert trimmed.encode("of").tokens == ["[CLS]", "o", "##f", "[SEP]"]
    assert [entries[number] for number in found.ids] == found.tokens
    kept = [tokenizer.id_to_token(number) for number in rows_of(tokenizer, entries)]
    assert kept == entries


def test_the_teacher_is_sentence_transformers_and_goes_on_where_it_was(
    teacher: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = ["join the graph", "order", "the array of every file in the table " * 20]
    model = Teacher(teacher, tokenizer, threads=1)
    vectors = model.embed(texts)
    theirs = SentenceTransformer(str(teacher), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), theirs, atol=1e-5)
    path = tmp_path / "taught.npy"
    np.lib.format.open_memmap(path, "w+", np.float16, (3, 24))[:2] = 7
    path.with_suffix(".json").write_text(json.dumps({"count": 2, "shape": [3, 24]}))
    found = embed_to_disk(model, texts, path)
    assert (found[:2] == 7).all()  # not made again, but the piece after them
    np.testing.assert_allclose(found[2], vectors[2], atol=2e-3)


def test_every_text_is_seen_once_an_epoch_beside_texts_of_like_length(recipe: NanoRecipe) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100).tolist()
    batches = batches_of(lengths, recipe)
    assert sorted(np.concatenate(batches[: len(batches) // recipe.epochs]).tolist()) == list(range(100))
    spreads = [np.ptp([lengths[row] for row in batch]) for batch in batches]
    assert np.mean(spreads) < 10 < np.ptp(lengths)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx([(100 - step) / 95 for step in range(5, 100)])


def test_packages_of_the_test_questions_teach_nothing(tmp_path: Path) -> None:
    rows = [document(number, package) for number, package in enumerate(("numpy", "pandas", "sklearn", "networkx"))]
    Collection.write(tmp_path / "collection", rows, {}, {})
    assert [row.id for row in training_documents(tmp_path / "collection")] == [rows[0]["_id"]]


def test_taught_texts_come_from_the_documents_and_from_the_seed() -> None:
    documents = [Document(row["_id"], row["title"], row["text"]) for row in map(document, range(50))]
    comments = [f"comment number {number} about the order" for number in range(50)]
    taught = texts_to_teach(documents, comments, 40, seed=3)
    assert taught == texts_to_teach(documents, comments, 40, seed=3) != texts_to_teach(documents, comments, 40, seed=4)
    assert sum(text in comments for text in taught) == round(0.25 * 40)
    everything = " ".join(" ".join(row.content.split()) for row in documents)
    assert all(text in comments or text in everything for text in taught)
