"""Passages: never longer than allowed, nothing lost, ids that lead back. The stock tokenizer is the judge of length."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transformers import BertTokenizer

from drama_models import Collection
from drama_models.errors import CollectionError, ModelFolderError
from drama_models.provenance import read_provenance
from drama_models.tokenisation import load_tokenizer
from tests.conftest import TEXTS
from tests.drama_models.published_models import write_dragon
from training.augment.chunk import ChunkRecipe, chunk, cut_between_words, joined, passages
from training.augment.read_documents import Block, SourceDocument
from training.augment.sentences import split_sentences, word_count

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = ["pump", "valve", "océan", "水", "мост", "सेतु", "electroencephalographically", "3.5", "\N{GRINNING FACE}", "∑"]


@pytest.fixture
def tokenizer(llama_folder: Path) -> Tokenizer:
    return load_tokenizer(llama_folder, set_ends=False)


def noise(seed: int, sentences: int) -> str:
    draw = random.Random(seed)
    return " ".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) + "." for _ in range(sentences))


@pytest.mark.parametrize("max_tokens", [12, 40, 256])
def test_every_passage_fits_and_nothing_is_lost(tokenizer: Tokenizer, max_tokens: int) -> None:
    documents = [SourceDocument(f"d{seed}", "", [Block(noise(seed, 20)), Block("x" * 3000)]) for seed in range(3)]
    made = list(passages(documents, tokenizer, max_tokens, min_tokens=1))
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch([passage.text for passage in made])]
    assert max(lengths) <= max_tokens - 2
    for document in documents:
        found = "".join(passage.text for passage in made if passage.document == document.id)
        assert found.replace(" ", "") == "".join(block.text for block in document.blocks).replace(" ", "")
    assert len({passage.id for passage in made}) == len(made)


def test_what_is_one_unknown_token_is_still_cut() -> None:
    nano = load_tokenizer(Path("demo/nano"), set_ends=False)
    assert len(nano.encode("x" * 5000, add_special_tokens=False).ids) == 1
    made = list(passages([SourceDocument("d", "", [Block("x" * 1_000_000)])], nano, min_tokens=1))
    assert "".join(passage.text for passage in made).replace(" ", "") == "x" * 1_000_000
    assert max(len(passage.text) for passage in made) <= 256 * 32


def test_passages_are_filled_with_whole_sentences(tokenizer: Tokenizer) -> None:
    sentences = [f"Sentence number {number} is here." for number in range(40)]
    made = list(passages([SourceDocument("d", "T", [Block(" ".join(sentences))])], tokenizer, 100))
    assert " ".join(passage.text for passage in made) == " ".join(sentences)
    assert all(passage.text.endswith("here.") for passage in made)
    for passage, following in pairwise(made):
        more = f"{passage.text} {split_sentences(following.text)[0]}"
        assert len(tokenizer.encode(more).ids) > 98  # the next sentence would not have fitted


def test_a_heading_starts_a_passage_and_names_it(tokenizer: Tokenizer) -> None:
    blocks = [Block("Intro text is here."), Block("Starting", heading=True), Block("Open the valve now.")]
    made = list(passages([SourceDocument("a.md", "Manual", blocks)], tokenizer, min_tokens=1))
    assert [(passage.id, passage.title, passage.text) for passage in made] == [
        ("a.md:0", "Manual", "Intro text is here."),
        ("a.md:1", "Manual – Starting", "Open the valve now."),
    ]


def test_sentences_of_many_languages() -> None:
    assert split_sentences("玄武岩是怎样形成的？它覆盖海底。", "zh") == ["玄武岩是怎样形成的？", "它覆盖海底。"]
    assert split_sentences("यह एक वाक्य है। यह दूसरा है।", "hi") == ["यह एक वाक्य है।", "यह दूसरा है।"]
    assert split_sentences("هل هذا؟ نعم.", "ar") == ["هل هذا؟", "نعم."]
    assert split_sentences("Am 3. Mai kam Dr. Weber. Es regnete.", "de", "moses")[-1] == "Es regnete."
    assert split_sentences("一。二。", "zh", "moses") == ["一。", "二。"]  # Moses has no Chinese
    assert split_sentences(" \n ") == []
    assert joined(["它覆盖海底。", "好。", "GPU is new.", "Yes."]) == "它覆盖海底。好。 GPU is new. Yes."
    assert word_count("three short words") == 3
    assert word_count("它覆盖海底") == 3


def test_long_text_is_cut_between_words_where_there_are_any() -> None:
    assert cut_between_words("aa bb cc", 5) == ["aa bb", "cc"]
    assert cut_between_words("abcdefg", 3) == ["abc", "def", "g"]
    text = noise(0, 500)
    pieces = cut_between_words(text, 300)
    assert max(map(len, pieces)) <= 300
    assert " ".join(pieces) == text


def test_a_folder_becomes_a_collection(llama_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "a.txt").write_text("Open the valve and wait for it. " * 30, encoding="utf-8")
    (source / "line.txt").write_text("word " * 100_000, encoding="utf-8")  # one line without an end
    (source / "logo.txt").write_bytes(b"\x00")
    recipe = ChunkRecipe(documents=source, model=llama_folder, out=tmp_path / "out")
    figures = chunk(recipe)["figures"]
    documents = list(Collection(recipe.out).documents())
    assert figures == {"documents": 2, "passages": len(documents), "skipped": {"binary": ["logo.txt"]}}
    assert {document.id.partition(":")[0] for document in documents} == {"a.txt", "line.txt"}
    assert next(Collection(recipe.out).records())["document"] == "a.txt"
    record = read_provenance(recipe.out)
    assert record is not None
    assert record["recipe"]["max_tokens"] == 256
    again = ChunkRecipe(documents=recipe.out, model=llama_folder, out=tmp_path / "again", max_tokens=64)
    assert chunk(again)["figures"]["documents"] == len(documents)


def test_a_model_with_a_bare_vocabulary_counts_tokens_too(tmp_path: Path) -> None:
    folder, _ = write_dragon(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(TEXTS), encoding="utf-8")
    chunk(ChunkRecipe(documents=tmp_path / "text.txt", model=folder, out=tmp_path / "made", max_tokens=40))
    stock = BertTokenizer.from_pretrained(folder)
    lengths = [len(stock(document.text)["input_ids"]) for document in Collection(tmp_path / "made").documents()]
    assert len(lengths) > 10
    assert 30 < max(lengths) <= 40


def test_what_cannot_be_chunked_leaves_nothing(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(CollectionError, match="holds no documents"):
        chunk(ChunkRecipe(documents=tmp_path / "docs", model=llama_folder, out=tmp_path / "out"))
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json is missing"):
        chunk(ChunkRecipe(documents=tmp_path / "docs", model=tmp_path, out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]
    with pytest.raises(ValueError, match="try min_tokens=8 and max_tokens=256"):
        ChunkRecipe(documents=tmp_path, model=tmp_path, out=tmp_path, max_tokens=9)
