"""Prompts token by token: cutting without decoding, limits, and old vocabularies against the stock tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import BertTokenizer

from drama_models.errors import ModelFolderError, PromptError
from drama_models.prompts import (
    IN_CONTEXT,
    InContextExample,
    InContextPrompter,
    InstructFormat,
    cut_texts,
    examples_prefix,
    read_format,
)
from drama_models.tokenisation import load_tokenizer
from tests.conftest import TEXTS
from tests.drama_models.published_models import sentence_piece, write_dragon

SENTENCES = ["A plain sentence.", "  two  spaces ", "line\nbreak", "naïve café", "读一本书", "", *TEXTS[:2]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """As of SentencePiece: a space before every word, also before the first."""
    tokenizer: Tokenizer = sentence_piece(["<instruct>", "<query>", "<response>"]).backend_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(SENTENCES), max_size=6), limit=st.integers(0, 30))
def test_a_cut_text_is_a_start_with_so_many_tokens(tokenizer: Tokenizer, parts: list[str], limit: int) -> None:
    text = "".join(parts)
    (cut,) = cut_texts([text], limit, tokenizer)
    ids, kept = (tokenizer.encode(piece, add_special_tokens=False).ids for piece in (text, cut))
    assert text.startswith(cut)
    if len(ids) <= limit:
        assert cut == text
    else:
        assert len(kept) <= limit


def test_cutting_adds_no_spaces_where_decoding_would(tokenizer: Tokenizer) -> None:
    text = f"<instruct>{TEXTS[0]}\n<query>{TEXTS[1]}"
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:12]
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    (cut,) = cut_texts([text], 12, tokenizer)
    assert cut == text[: len(cut)]
    assert decoded != cut
    assert decoded.replace(" ", "") == cut.replace(" ", "")
    assert tokenizer.encode(cut, add_special_tokens=False).ids == ids


def test_a_prompt_with_a_thousand_examples_is_still_whole(tokenizer: Tokenizer) -> None:
    prompt = IN_CONTEXT.before("Find it.")
    shots = [InContextExample(query=TEXTS[0], response=TEXTS[1])] * 1000
    prefix = examples_prefix(shots, prompt, IN_CONTEXT)
    prompter = InContextPrompter(tokenizer, IN_CONTEXT, prompt, prefix, 32)
    (ids,), cut = prompter.encode(["short"])
    assert cut == 0
    assert ids.tolist() == tokenizer.encode(f"{prefix}{prompt}short\n<response>").ids
    _, cut = prompter.encode(["short", " ".join(TEXTS), "x " * 200_000])
    assert cut == 2


def test_tags_as_plain_text_end_a_query_without_a_space() -> None:
    as_text = InstructFormat(instruction="Instruct: ", query="\nQuery: ", response="\nResponse: ")
    shots = [InContextExample(query="q", response="r"), InContextExample(instruction="Other.", query="p")]
    prefix = examples_prefix(shots, as_text.before("Find it."), as_text)
    assert prefix == ("Instruct: Find it.\nQuery: q\nResponse: r\n\nInstruct: Other.\nQuery: p\nResponse: \n\n")
    assert as_text.end == "\nResponse:"
    stored = {"instruction": "Instruct: ", "query": "\nQuery: ", "response": "\nResponse: "}
    assert read_format(stored) == as_text
    assert read_format({"response": None}) == InstructFormat(response=None)
    for wrong in ({"answer": "x"}, {"query": 3}, "bge"):
        with pytest.raises(PromptError, match="holds only the tags instruction, query, response"):
            read_format(wrong)  # type: ignore[arg-type]


def test_a_vocabulary_without_tokenizer_file_reads_as_stock_bert(tmp_path: Path) -> None:
    folder, _ = write_dragon(tmp_path)
    ours, stock = load_tokenizer(folder, set_ends=False), BertTokenizer.from_pretrained(folder)
    for text in (*SENTENCES, "Put TWO tables, together", "ÀÉ [SEP] x"):
        assert ours.encode(text).ids == stock(text)["input_ids"]
    (folder / "vocab.txt").write_text("only\nwords\n", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"vocab\.txt is not a tokenizer file"):
        load_tokenizer(folder, set_ends=False)
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json is missing"):
        load_tokenizer(folder, set_ends=False)
