"""Vocabularies cut down: same tokens, same embeddings, fewer rows; the oracle is the folder before the cut."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from drama_models import Collection, Encoder, evaluate
from drama_models.errors import CollectionError, ModelFolderError
from drama_models.model_folder import read_json
from export.release import ReleaseRecipe, release
from export.trim_vocab import TrimRecipe, trim_vocabulary
from export.vocabulary import kept_tokens, smaller_tokenizer
from tests.conftest import TEXTS

WORDS = "banana bandana cabana nab ban can cabin bin nib abba baba".split()  # noqa: SIM905


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS[:3]), encoding="utf-8")
    return path


def tokenizer_of(words: list[str], size: int, *, ignore_merges: bool = False) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def test_texts_of_the_corpus_keep_their_embeddings(retriever_folder: Path, corpus: Path, tmp_path: Path) -> None:
    record = trim_vocabulary(TrimRecipe(model=retriever_folder, corpus=(corpus,), out=tmp_path / "small"))
    figures = record["figures"]
    assert figures["coverage"] == 1
    assert figures["tokens_after"] < figures["tokens_before"]
    assert figures["megabytes_after"] < figures["megabytes_before"]
    before, after = (
        Encoder.from_pretrained(folder, runtime="torch") for folder in (retriever_folder, tmp_path / "small")
    )
    np.testing.assert_allclose(after.encode_documents(TEXTS[:3]), before.encode_documents(TEXTS[:3]), atol=1e-6)
    np.testing.assert_allclose(after.encode_queries(TEXTS[:3]), before.encode_queries(TEXTS[:3]), atol=1e-6)
    other = ["Ωμέγα is not in the corpus", "日本語"]
    assert np.isfinite(after.encode_documents(other)).all()  # byte by byte, but encoded


def test_what_was_cut_can_be_released(retriever_folder: Path, corpus: Path, tmp_path: Path) -> None:
    trim_vocabulary(TrimRecipe(model=retriever_folder, corpus=(corpus,), out=tmp_path / "small"))
    parity = release(ReleaseRecipe(retriever=tmp_path / "small", out=tmp_path / "release", license="apache-2.0"))
    assert min(client.smallest_cosine for client in parity) > 0.9999  # stock clients read the new tokenizer and ids
    config = read_json(tmp_path / "release" / "config.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "release" / "tokenizer.json"))
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [
        tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>")
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(262, 300),
    ignore_merges=st.booleans(),
    kept=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
)
def test_a_text_whose_tokens_are_kept_is_cut_as_before(
    seed: int, size: int, ignore_merges: bool, kept: list[str]
) -> None:
    whole = tokenizer_of(WORDS, size, ignore_merges=ignore_merges)
    before = Tokenizer.from_str(json.dumps(whole))
    used = {number for encoding in before.encode_batch(kept) for number in encoding.ids}
    ids = kept_tokens(whole, used)
    after = Tokenizer.from_str(json.dumps(smaller_tokenizer(whole, ids)))
    draw = random.Random(seed)  # noqa: S311
    for _ in range(20):
        text = "".join(draw.choice("abcn di") for _ in range(draw.randint(1, 12)))
        tokens = before.encode(text).tokens
        if set(before.encode(text).ids) <= set(ids):
            assert after.encode(text).tokens == tokens
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)


def test_languages_keep_their_scripts() -> None:
    words = ["hello world", "привет мир", "नमस्ते", "123 !?"] * 5
    whole = tokenizer_of(words, 330)
    kept = kept_tokens(whole, set(), ("en",))
    small = smaller_tokenizer(whole, kept)
    after, before = (Tokenizer.from_str(json.dumps(content)) for content in (small, whole))
    assert after.encode("hello world 123 !?").tokens == before.encode("hello world 123 !?").tokens
    assert 4 * len(before.encode("привет").tokens) <= len(after.encode("привет").tokens) <= 12  # two bytes a letter
    both = kept_tokens(whole, set(), ("en", "ru"))
    assert len(kept) < len(both) < len(whole["model"]["vocab"])


def test_rare_tokens_are_dropped_and_the_coverage_says_so(
    retriever_folder: Path, corpus: Path, collection_folder: Path, tmp_path: Path
) -> None:
    recipe = TrimRecipe(
        model=retriever_folder, corpus=(corpus, collection_folder), out=tmp_path / "small", least_count=40,
        evaluate=collection_folder,
    )  # fmt: skip
    figures = trim_vocabulary(recipe)["figures"]
    assert 0.5 < figures["coverage"] < 1
    assert "largest_difference" not in figures
    assert 0 <= figures["ndcg@10_after"] <= 1
    assert 0 < figures["ndcg@10_before"] <= 1


def test_a_collection_is_counted_and_measured_as_the_model_reads_it(
    separated_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    recipe = TrimRecipe(
        model=separated_folder, corpus=(collection_folder,), out=tmp_path / "small", evaluate=collection_folder
    )
    figures = trim_vocabulary(recipe)["figures"]
    collection, encoder = Collection(collection_folder), Encoder.from_pretrained(separated_folder, runtime="torch")
    documents = list(collection.documents())
    texts = [f"{document.title}:\n{document.text}" for document in documents]
    whole, cut = (
        Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (separated_folder, tmp_path / "small")
    )
    assert [cut.encode(text).tokens for text in texts] == [whole.encode(text).tokens for text in texts]
    qrels, queries = collection.qrels("test"), collection.queries()
    scores = encoder.encode_queries([queries[key] for key in qrels]) @ encoder.encode_documents(texts).T
    rows = (dict(zip((document.id for document in documents), row.tolist(), strict=True)) for row in scores)
    expected = evaluate(dict(zip(qrels, rows, strict=True)), qrels)["ndcg@10"]
    assert figures["ndcg@10_before"] == pytest.approx(expected, abs=1e-6)


def test_what_the_folder_puts_around_a_query_is_kept_whatever_its_script(
    retriever_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(retriever_folder, tmp_path / "model"))
    (model / "provenance.json").unlink()
    named = model / "config_sentence_transformers.json"
    tags = {"instruction": "Sort ", "query": " tables ", "response": " points "}
    prompts = read_json(named)["prompts"] | {"topics": "Compute the digest: "}
    named.write_text(json.dumps(read_json(named) | {"prompts": prompts, "instruct_format": tags}), encoding="utf-8")
    solved = {"topics": [{"query": "column", "response": "Average the numbers", "instruct": "Read a date"}]}
    (model / "examples.json").write_text(json.dumps(solved), encoding="utf-8")
    trim_vocabulary(TrimRecipe(model=model, out=tmp_path / "small", languages=("ru",)))
    before, after = (Encoder.from_pretrained(folder, runtime="torch") for folder in (model, tmp_path / "small"))
    for task in (None, "topics"):
        expected, found = (encoder.encode_queries(["привет, мир"], task=task) for encoder in (before, after))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json is not valid JSON"),
        ("tokenizer.json", None, "has a token of number 400 where the embedding has 400 rows"),
        ("config.json", '{"model_type": "bert"}', "is a bert, and vocabularies of Llamas are cut here"),
    ],
)
def test_a_folder_that_cannot_be_cut_is_one_sentence(
    retriever_folder: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    model = Path(shutil.copytree(retriever_folder, tmp_path / "model"))
    if content is None:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.add_special_tokens(["<beyond>"])
        content = tokenizer.to_str()
    (model / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=message):
        trim_vocabulary(TrimRecipe(model=model, out=tmp_path / "small", languages=("en",)))
    assert not (tmp_path / "small").exists()


def test_a_pad_token_of_minus_one_stays_so(retriever_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(retriever_folder, tmp_path / "model"))
    (model / "provenance.json").unlink()
    config = read_json(model / "config.json") | {"pad_token_id": -1}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    trim_vocabulary(TrimRecipe(model=model, out=tmp_path / "small", languages=("en",)))
    assert read_json(tmp_path / "small" / "config.json")["pad_token_id"] == -1


def test_what_cannot_be_cut_is_refused(retriever_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Say what to keep"):
        TrimRecipe(model=retriever_folder, out=tmp_path / "small")
    with pytest.raises(ValueError, match=r"\['xx'\] are not known here; choose among af, am"):
        TrimRecipe(model=retriever_folder, out=tmp_path / "small", languages=("en", "xx"))
    with pytest.raises(ModelFolderError, match="is WordPiece, and only byte-pair"):
        kept_tokens({"model": {"type": "WordPiece"}}, set())
    with pytest.raises(CollectionError, match="no text file or BEIR folder at"):
        trim_vocabulary(TrimRecipe(model=retriever_folder, out=tmp_path / "small", corpus=(tmp_path / "absent.txt",)))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(CollectionError, match=r"latin\.txt is not UTF-8"):
        trim_vocabulary(TrimRecipe(model=retriever_folder, out=tmp_path / "small", corpus=(tmp_path / "latin.txt",)))
    assert not (tmp_path / "small").exists()
