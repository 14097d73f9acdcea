"""Documents to passages of whole sentences, up to a number of tokens, as a collection (DRAMA 3.1: 256 tokens).

A passage never crosses a heading or the end of its document. Its id is the document's with `:NUMBER` behind it, and
its record names the document, so that every query made of it can be traced to its source. Its title is the document's
title and the heading it stands under; the heading is in the record by itself too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from drama_models.collection import Collection
from drama_models.errors import RecipeError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from drama_models.tokenisation import load_tokenizer
from training.augment.read_documents import SkippedFiles, SourceDocument, plain_blocks, read_documents
from training.augment.sentences import split_sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenizers import Tokenizer

TITLE_SEPARATOR = " \N{EN DASH} "  # between a document's title and a heading
END_TOKENS = 2  # BOS and EOS count as tokens of the passage
SENTENCES_AT_ONCE = 4096
LONGEST_WORD_CHARACTERS = 200  # what has no space for longer is cut where it stands
UNSPACED = re.compile("[\u2e80-\ua4cf\uf900-\ufaff\uff00-\uff60]")  # Chinese and Japanese letters and signs
LONGEST_TOKEN_CHARACTERS = 32  # to some tokenizers a word of any length is one unknown token; it counts as more
CHARACTERS_PER_TOKEN = 8  # a longer stretch than this for each allowed token is cut before it is tokenised


@dataclass(frozen=True, kw_only=True)
class ChunkRecipe:
    """Settings of chunking."""

    documents: Path
    """Folder or file of txt, md, html or jsonl; or a collection (BEIR folder)."""
    model: Path
    """Model folder whose tokenizer counts the tokens."""
    out: Path
    """Collection to make."""
    max_tokens: int = 256
    """Tokens of a passage at most, its ends included."""
    min_tokens: int = 8
    """Shorter passages are left out."""
    language: str = "en"
    """Two-letter code, for where sentences end."""

    def __post_init__(self) -> None:
        if not END_TOKENS < self.min_tokens + END_TOKENS <= self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} must be between 1 and max_tokens - {END_TOKENS} "
                f"({self.max_tokens - END_TOKENS}); try min_tokens=8 and max_tokens=256."
            )


@dataclass(frozen=True)
class Passage:
    """Some sentences of one document that follow each other."""

    id: str
    title: str
    text: str
    document: str
    """Id of the document."""
    heading: str = ""
    """What it stands under, where that is not the title of the document; `title` ends with it."""

    def record(self) -> dict[str, Any]:
        """As a line of corpus.jsonl."""
        return {
            "_id": self.id, "title": self.title, "text": self.text, "document": self.document, "heading": self.heading
        }  # fmt: skip


def chunk(recipe: ChunkRecipe) -> dict[str, Any]:
    """Make a collection of passages from documents; returns the provenance record.

    Raises:
        CollectionError: no documents, or a malformed one.
        ModelFolderError: the folder has no tokenizer.
        RecipeError: the collection would lie among the documents.
    """
    check_outside(recipe.out, recipe.documents)
    tokenizer = load_tokenizer(recipe.model, set_ends=False)
    skipped = SkippedFiles()
    counts = {"documents": 0, "passages": 0}

    def records() -> Iterator[dict[str, Any]]:
        documents = _counted(_read(recipe.documents, skipped), counts)
        for passage in passages(documents, tokenizer, recipe.max_tokens, recipe.min_tokens, recipe.language):
            counts["passages"] += 1
            yield passage.record()

    with atomic_folder(recipe.out) as partial:
        Collection.write(partial, records())
        figures = counts | {"skipped": skipped.reasons}
        return write_provenance(partial, stage="training.chunk", recipe=recipe, inputs={}, figures=figures)


def check_outside(out: Path, documents: Path) -> None:
    """Refuse to write among the documents, where the next call would read it as one.

    Raises:
        RecipeError: `out` is the folder of documents or lies below it.
    """
    if out.resolve().is_relative_to(documents.resolve()):
        raise RecipeError(
            f"{out} lies in {documents}, and would be read as documents the next time; choose an --out elsewhere."
        )


def passages(
    documents: Iterable[SourceDocument],
    tokenizer: Tokenizer,
    max_tokens: int = 256,
    min_tokens: int = 8,
    language: str = "en",
) -> Iterator[Passage]:
    """Passages of each document in order, tokenised in batches, in memory that does not grow.

    Args:
        documents: as read.
        tokenizer: counts the tokens.
        max_tokens: of a passage, two ends included; a longer sentence is cut between words.
        min_tokens: passages with fewer are left out, their number is used up.
        language: two-letter code.
    """
    for group in _groups(_sections(documents, max_tokens, language)):
        sentences = [sentence for section in group for sentence in section.sentences]
        counts = iter(token_counts(sentences, tokenizer))
        for section in group:
            counted = [(sentence, next(counts)) for sentence in section.sentences]
            counted = [piece for pair in counted for piece in _fitting(*pair, tokenizer, max_tokens - END_TOKENS)]
            yield from section.packed(counted, max_tokens - END_TOKENS, min_tokens)


def token_counts(texts: list[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each text behind a space, as it stands inside a passage, without ends; at least one for 32 letters."""
    encodings = tokenizer.encode_batch_fast([f" {text}" for text in texts], add_special_tokens=False)
    return [
        max(len(encoding.ids), len(text) // LONGEST_TOKEN_CHARACTERS)
        for text, encoding in zip(texts, encodings, strict=True)
    ]


class _Section:
    """What stands under one heading of a document, or before the first."""

    def __init__(self, document: SourceDocument, heading: str, numbers: Iterator[int]) -> None:
        self.document, self.heading, self.numbers = document, heading, numbers
        self.sentences: list[str] = []

    def packed(self, sentences: list[tuple[str, int]], limit: int, min_tokens: int) -> Iterator[Passage]:
        """Fill each passage with sentences as long as they fit."""
        taken: list[str] = []
        tokens = 0
        for sentence, count in [*sentences, ("", limit + 1)]:  # the last closes the passage
            if taken and tokens + count > limit:
                number = next(self.numbers)
                if tokens >= min_tokens:
                    yield self._passage(number, joined(taken))
                taken, tokens = [], 0
            taken.append(sentence)
            tokens += count

    def _passage(self, number: int, text: str) -> Passage:
        heading = self.heading if self.heading != self.document.title else ""
        title = TITLE_SEPARATOR.join(filter(None, (self.document.title, heading)))
        return Passage(f"{self.document.id}:{number}", title, text, self.document.id, heading)


def _sections(documents: Iterable[SourceDocument], max_tokens: int, language: str) -> Iterator[_Section]:
    longest = CHARACTERS_PER_TOKEN * max_tokens
    for document in documents:
        numbers = iter(range(1 << 62))
        section = _Section(document, "", numbers)
        for block in document.blocks:
            if block.heading:
                yield section
                section = _Section(document, block.text, numbers)
                continue
            for sentence in split_sentences(block.text, language):
                section.sentences += cut_between_words(sentence, longest)
                if len(section.sentences) >= SENTENCES_AT_ONCE:  # a document of any length, in parts
                    yield section
                    section = _Section(document, section.heading, numbers)
        yield section


def _groups(sections: Iterable[_Section]) -> Iterator[list[_Section]]:
    """Sections until enough sentences are together for a batch."""
    group: list[_Section] = []
    count = 0
    for section in sections:
        group.append(section)
        count += len(section.sentences)
        if count >= SENTENCES_AT_ONCE:
            yield group
            group, count = [], 0
    yield group


def joined(sentences: list[str]) -> str:
    """Sentences as one text: behind a space, except between Chinese or Japanese characters."""
    text = sentences[0]
    for sentence in sentences[1:]:
        text += sentence if UNSPACED.match(text[-1]) and UNSPACED.match(sentence) else f" {sentence}"
    return text


def cut_between_words(text: str, longest: int) -> list[str]:
    """Pieces of at most `longest` characters, cut at white space where there is some near the end."""
    pieces = []
    start = 0
    while len(text) - start > longest:
        space = text.rfind(" ", max(start + 1, start + longest - LONGEST_WORD_CHARACTERS), start + longest + 1)
        end = space if space > 0 else start + longest
        pieces.append(text[start:end])
        start = end + (space > 0)
    return [*pieces, text[start:]]


def _fitting(sentence: str, tokens: int, tokenizer: Tokenizer, limit: int) -> Iterator[tuple[str, int]]:
    """The sentence, halved until each piece fits the limit."""
    if tokens <= limit or len(sentence) < 2:
        yield sentence, min(tokens, limit)
        return
    for piece in cut_between_words(sentence, (len(sentence) + 1) // 2):
        yield from _fitting(piece, token_counts([piece], tokenizer)[0], tokenizer, limit)


def _read(source: Path, skipped: SkippedFiles) -> Iterator[SourceDocument]:
    """Documents of a collection where the folder is one, else of its files."""
    if not any((source / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz")):
        yield from read_documents(source, skipped)
        return
    for document in Collection(source).documents():
        yield SourceDocument(quote(document.id, safe="/#:"), document.title, plain_blocks(document.text)[1])


def _counted(documents: Iterable[SourceDocument], counts: dict[str, int]) -> Iterator[SourceDocument]:
    for document in documents:
        counts["documents"] += 1
        yield document
