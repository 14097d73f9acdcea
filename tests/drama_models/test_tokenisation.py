"""Reading only the start of a long text gives the ids of a stock tokenizer that reads it whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from drama_models import Encoder
from drama_models.errors import ModelFolderError, TextsCutWarning
from drama_models.model_folder import read_json
from drama_models.profile import Profile
from drama_models.tokenisation import TextTokenizer

SOURCE = Path(__file__).parents[2] / "demo" / "source" / "tokenizer.json"  # the split pattern of Llama 3
NANO = SOURCE.parents[1] / "nano"  # a BERT's, which drops blanks and control characters
PROFILE = Profile(
    hidden_size=8,
    bidirectional=True,
    pooling="mean",
    query_prompt="Query: ",
    document_prompt="",
    set_ends=False,
    max_length=64,
    normalise=True,
    dims=(),
)
PIECES = ["join two tables", "\n\n", "    ", "a" * 90, "12345678901234567890", "-" * 60, "=== ", "naïve café", " don't"]
PIECES += [
    "किताब पढ़ना",
    "图书馆里的书",
    "ภาษาไทยไม่เว้นวรรค",
    "كتاب مفتوح",
    "e\u0301\u0301",
    "👩‍👩‍👧",
    "\u3000",
    "\t",
    "<|end_of_text|>",
    ". ",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=80).map("".join)


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.train_from_iterator(PIECES * 3, trainers.BpeTrainer(show_progress=False))
    return tokenizer


@pytest.mark.parametrize("cased", [True, False])
def test_lower_case_is_taken_as_sentence_transformers_does(tmp_path: Path, cased: bool) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(SOURCE.parents[1] / "nano", tmp_path / "nano"))
    settings = {"max_seq_length": 128, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if cased:
        content = (
            (folder / "tokenizer.json").read_text(encoding="utf-8").replace('"lowercase": true', '"lowercase": false')
        )
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    texts = ["How do I JOIN two Tables?", "readCsvFile in NumPy"]
    model = SentenceTransformer(str(folder), device="cpu")
    encoder = Encoder.from_pretrained(folder, verify=False)
    np.testing.assert_allclose(encoder.encode_documents(texts), model.encode(texts), atol=1e-5)


LONG = ["read the file line by line " * 20 + "and sort all of the tables by column " * 30, "a short text"]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"model_max_length": 64}),
        ("sentence_bert_config.json", {"max_seq_length": 32}),
        ("sentence_bert_config.json", {"tokenizer_args": {"model_max_length": 40}}),
        ("sentence_bert_config.json", {"processor_kwargs": {"model_max_length": 40}}),
        ("sentence_bert_config.json", {"processor_kwargs": {"truncation_side": "left"}}),
        ("sentence_roberta_config.json", {"max_seq_length": 32}),
        ("1_Pooling/config.json", None),
    ],
)
def test_long_texts_are_cut_as_sentence_transformers_cuts_them(
    tmp_path: Path, file: str, changes: dict[str, Any] | None
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(SOURCE.parents[1] / "nano", tmp_path / "nano"))
    if file == "sentence_roberta_config.json":
        (folder / "sentence_bert_config.json").unlink()
    stored = read_json(folder / file) if (folder / file).is_file() else {}
    content = stored | changes if changes is not None else {"word_embedding_dimension": 384}  # pools by the mean
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    expected = SentenceTransformer(str(folder), device="cpu").encode_document(LONG)
    with pytest.warns(TextsCutWarning, match="1 texts were longer"):
        found = Encoder.from_pretrained(folder, verify=False).encode_documents(LONG)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lengths_that_are_not_read_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SOURCE.parents[1] / "nano", tmp_path / "nano"))
    settings = {"max_seq_length": 128, "processing_kwargs": {"text": {"max_length": 32}}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="sets processing_kwargs, which are not read here"):
        Encoder.from_pretrained(folder, verify=False)


@pytest.fixture(scope="module", params=["llama 3", "metaspace", "whitespace", "none"])
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "llama 3":
        shutil.copy(SOURCE, folder)
        return folder
    splitters = {"metaspace": pre_tokenizers.Metaspace(), "whitespace": pre_tokenizers.Whitespace(), "none": None}
    trained(splitters[request.param]).save(str(folder / "tokenizer.json"))
    return folder


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXT, max_size=4), max_length=st.sampled_from([4, 16, 64]), prompt=st.sampled_from(["", "Query: "])
)
def test_ids_are_those_of_the_whole_text(
    tokenizer_folder: Path, texts: list[str], max_length: int, prompt: str
) -> None:
    whole = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    expected = [whole.encode(prompt + text).ids for text in texts]
    rows, cut = TextTokenizer(tokenizer_folder, PROFILE, max_length).encode(texts, prompt)
    assert [row.tolist() for row in rows] == [ids[:max_length] for ids in expected]
    assert cut == sum(len(ids) > max_length for ids in expected)
    assert all(row.dtype == np.int64 for row in rows)


@pytest.mark.parametrize("dropped", [" ", "\n", "\x00", "\u200b", "\ufffd"])
def test_a_text_behind_what_the_tokenizer_drops_is_read(dropped: str) -> None:
    whole = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    texts = [dropped * 10_000 + "join two tables", dropped * 10_000 + "join " * 20, "x" * 10_000 + " y"]
    rows, cut = TextTokenizer(NANO, PROFILE, 16).encode(texts)
    ends = [whole.encode(text).ids for text in texts]
    assert [row.tolist() for row in rows] == [ends[0], [*ends[1][:15], ends[1][-1]], ends[2]]
    assert cut == 1


def test_a_special_token_at_the_end_of_a_start_is_not_cut() -> None:
    text = "<|end_of_text|>" * 2  # 30 characters, of which four tokens need not read more than 24
    rows, _ = TextTokenizer(SOURCE.parent, PROFILE, 4).encode([text])
    assert rows[0].tolist() == Tokenizer.from_file(str(SOURCE)).encode(text).ids
