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

from drama_models.errors import CorpusError, ModelFolderError
from pruning.corpus import Corpus, tokenise
from pruning.documents import read_documents
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
    [
        (b"{broken", "line 2: expected a JSON object"),
        (b"[" * 100_000, "line 2: expected a JSON object"),
        (b'{"text": 3}', "line 2: `text` must be a string, found int"),
        (b'{"text": "\xe9"}', "line 2: this is not UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=rf"a\.jsonl, {message}"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\n\ntwo \xff\n", r"a\.txt, line 3: this is not UTF-8"),
        ("a.txt.gz", b"one", "cannot be read .*Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"one two three" * 99, mtime=0)[:-9], "cannot be read .*ended before"),
        ("a.txt.gz", gzip.compress(b"one", mtime=0)[:10] + b"\xff" * 20, "cannot be read .*invalid"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"content": ["a"]}, "no column `text`, only content"),
        ({"text": ["a", None]}, "row 2: `text` must be a string, found NoneType"),
        ({"text": [1]}, "row 1: `text` must be a string, found int"),
    ],
)
def test_a_table_without_its_texts_is_refused(tmp_path: Path, table: dict[str, list[object]], message: str) -> None:
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=message):
        list(read_documents(tmp_path / "a.parquet"))


def test_lone_surrogates_are_read_as_the_replacement_character(text: Path, llama_folder: Path, tmp_path: Path) -> None:
    """JSON can write them; no file can hold them and no tokenizer takes them. A pair is a character."""
    (text / "lines" / "a.jsonl").write_text(r'{"text": "lone \ud800, pair \ud83d\ude00"}', encoding="utf-8")
    assert list(read_documents(text / "lines" / "a.jsonl")) == ["lone \ufffd, pair \U0001f600"]
    corpus = tokenise(text, llama_folder, tmp_path / "corpus")
    assert corpus.domains["lines"]["train"].text_bytes == len("lone \ufffd, pair \U0001f600".encode())


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
    (text / "empty" / "one.txt").write_text("one document", encoding="utf-8")
    with pytest.raises(CorpusError, match="empty has one document, which is held out; add documents"):
        tokenise(text, llama_folder, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"bos_token_id": None}, "bos_token_id is None and must be a token below vocab_size=400"),
        ("config.json", {"eos_token_id": 400}, "eos_token_id is 400 and must be a token below"),
        ("config.json", {"eos_token_id": []}, r"eos_token_id is \[\] and must be a token below"),
        ("config.json", {"vocab_size": None}, "has no vocab_size"),
        ("config.json", None, r"config\.json is not valid JSON"),
        ("tokenizer.json", None, r"tokenizer\.json is not a tokenizer file"),
    ],
)
def test_a_model_that_cannot_say_its_tokens_is_refused(
    text: Path, llama_folder: Path, tmp_path: Path, name: str, changes: dict[str, object] | None, message: str
) -> None:
    model = shutil.copytree(llama_folder, tmp_path / "model")
    settings = json.loads((model / name).read_text(encoding="utf-8"))
    (model / name).write_text("{" if changes is None else json.dumps(settings | changes), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=message):
        tokenise(text, model, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_the_first_of_several_ends_closes_a_document(text: Path, llama_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama_folder, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 2]}), encoding="utf-8")
    one, several = tokenise(text, llama_folder, tmp_path / "one"), tokenise(text, model, tmp_path / "several")
    files = [corpus.folder / "lines" / "train.bin" for corpus in (one, several)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", b"{", r"manifest\.json is damaged; run `python -m pruning tokenise` again"),
        ("manifest.json", b"{}", r"manifest\.json is damaged"),
        ("manifest.json", b'{"domains": {"long": {"train": {"tokens": 3}}}}', r"manifest\.json is damaged"),
        ("long/train.bin", None, r"train\.bin is missing"),
        ("long/held_out.bin", b"\0" * 100, r"held_out\.bin has 100 bytes where manifest\.json announces"),
    ],
)
def test_a_damaged_corpus_is_not_opened(
    corpus_folder: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = shutil.copytree(corpus_folder, tmp_path / "corpus")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        Corpus.open(folder)


def test_tokens_that_the_model_does_not_have_are_refused(corpus_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus_folder, tmp_path / "corpus")
    for split in ("train", "held_out"):
        path = folder / "long" / f"{split}.bin"
        path.write_bytes(b"\xff" * path.stat().st_size)
    corpus = Corpus.open(folder)
    for data in (MixedSequences(corpus, {"long": 1.0}, 32, 4, 0), HeldOutSequences(corpus, "long", 32, 4)):
        with pytest.raises(CorpusError, match="there is a token 65535 where vocab_size is 400"):
            data[0]


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
