"""Tokenised corpora and the order they are read in."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from transformers import AutoTokenizer

from drama_models.errors import CorpusError
from pruning.corpus import Corpus, read_documents, tokenise
from pruning.mixture import HeldOutSequences, MixedSequences, normalised_proportions
from tests.conftest import make_llama

DOCUMENTS = ["Put two tables together.", "Average the numbers.", "ключ и 数据框"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """One domain of each kind of file."""
    folder = tmp_path / "text"
    for domain in ("lines", "paragraphs", "rows"):
        (folder / domain).mkdir(parents=True)
    lines = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS)
    (folder / "lines" / "a.jsonl").write_text(lines, encoding="utf-8")
    (folder / "lines" / "held_out.jsonl").write_text(json.dumps({"text": "held out"}) + "\n", encoding="utf-8")
    (folder / "paragraphs" / "a.txt.gz").write_bytes(gzip.compress("\n\n\n".join(DOCUMENTS).encode()))
    parquet.write_table(pa.table({"text": DOCUMENTS}), folder / "rows" / "a.parquet")
    return folder


def test_every_document_is_bos_tokens_eos(text: Path, llama_folder: Path, tmp_path: Path) -> None:
    corpus = tokenise(text, llama_folder, tmp_path / "corpus")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    expected = [token for document in DOCUMENTS for token in (0, *tokenizer(document)["input_ids"], 1)]
    found = np.fromfile(corpus.folder / "lines" / "train.bin", dtype=corpus.dtype)
    assert found.tolist() == expected
    assert corpus.dtype == "uint16"
    split = corpus.domains["lines"]["train"]
    assert (split.tokens, split.documents) == (len(expected), 3)
    assert split.text_bytes == sum(len(document.encode()) for document in DOCUMENTS)
    assert corpus.domains["lines"]["held_out"].documents == 1
    assert [corpus.domains[name]["train"].documents for name in ("paragraphs", "rows")] == [2, 2]  # one kept aside


def test_what_a_tokenizer_was_saved_with_neither_cuts_nor_pads(text: Path, llama_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer(DOCUMENTS, truncation=True, max_length=3, padding="max_length")
    tokenizer.save_pretrained(model)
    saved = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"]["max_length"] == saved["padding"]["strategy"]["Fixed"] == 3
    one, other = tokenise(text, llama_folder, tmp_path / "one"), tokenise(text, model, tmp_path / "other")
    assert one.domains == other.domains
    files = [corpus.folder / "lines" / "train.bin" for corpus in (one, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_all_kinds_of_files_give_the_same_documents(text: Path) -> None:
    assert list(read_documents(text / "lines" / "a.jsonl")) == DOCUMENTS
    assert [document.strip() for document in read_documents(text / "paragraphs" / "a.txt.gz")] == DOCUMENTS
    assert list(read_documents(text / "rows" / "a.parquet")) == DOCUMENTS


def test_sequences_are_cut_from_one_run_of_tokens(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    rows = corpus.sequences("long", "train", 32)
    flat = np.fromfile(corpus_folder / "long" / "train.bin", dtype=corpus.dtype)
    np.testing.assert_array_equal(rows.reshape(-1), flat[: len(flat) // 32 * 32])
    with pytest.raises(CorpusError, match="less than one sequence"):
        corpus.sequences("short", "held_out", 100_000)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{broken", "line 2: expected a JSON object"), ('{"text": 3}', "line 2: `text` must be a string, found int")],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        list(read_documents(path))


def test_what_cannot_be_tokenised_is_refused(text: Path, llama_folder: Path, tmp_path: Path) -> None:
    (text / "empty").mkdir()
    with pytest.raises(CorpusError, match="empty has no text"):
        tokenise(text, llama_folder, tmp_path / "corpus")
    with pytest.raises(CorpusError, match="has no domains"):
        tokenise(tmp_path / "absent", llama_folder, tmp_path / "corpus")
    small = make_llama(tmp_path / "small", vocab_size=50)
    with pytest.raises(CorpusError, match="its model only 50"):
        tokenise(text, small, tmp_path / "corpus")
    with pytest.raises(CorpusError, match="python -m pruning tokenise"):
        Corpus.open(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_belongs_to_its_tokenizer(corpus_folder: Path, llama_folder: Path, tmp_path: Path) -> None:
    Corpus.open(corpus_folder).check_tokenizer(llama_folder)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CorpusError, match="tokenised with another tokenizer"):
        Corpus.open(corpus_folder).check_tokenizer(tmp_path)


def test_the_order_follows_from_the_seed_and_uses_each_sequence_once_a_round(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    total = len(corpus.sequences("long", "train", 32))
    one, two, other = (MixedSequences(corpus, {"long": 1.0}, 32, 2 * total, seed) for seed in (5, 5, 6))
    assert one.row_of.tolist() == two.row_of.tolist() != other.row_of.tolist()
    for half in (one.row_of[:total], one.row_of[total:]):
        assert sorted(half) == list(range(total))
    assert one.epochs == {"long": 2.0, "short": 0.0}
    item = one[3]
    np.testing.assert_array_equal(item["input_ids"], corpus.sequences("long", "train", 32)[one.row_of[3]])
    np.testing.assert_array_equal(item["labels"][1:], item["input_ids"][1:])
    assert item["labels"][0] == -100


def test_domains_are_drawn_by_proportion(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    drawn = MixedSequences(corpus, {"long": 1, "short": 3}, 32, 4000, 0).domain_of
    # the share of 4,000 draws has a standard error of 0.007
    assert abs(drawn.mean() - 0.75) < 0.035
    natural = normalised_proportions(corpus, {})
    tokens = {name: splits["train"].tokens for name, splits in corpus.domains.items()}
    assert natural == pytest.approx({name: count / sum(tokens.values()) for name, count in tokens.items()})
    with pytest.raises(CorpusError, match=r"No domain 'code' .* choose from: long, short"):
        normalised_proportions(corpus, {"code": 1.0})
    with pytest.raises(CorpusError, match="must be positive"):
        normalised_proportions(corpus, {"long": 0.0})


def test_held_out_text_is_apart(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    held_out = HeldOutSequences(corpus, "long", 16, limit=3)
    assert len(held_out) == min(3, corpus.domains["long"]["held_out"].tokens // 16)
    np.testing.assert_array_equal(held_out[0]["input_ids"], corpus.sequences("long", "held_out", 16)[0])
