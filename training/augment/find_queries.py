"""Queries that stand in the documents already: their titles, headings and questions, without a large model.

A title asks for the first passage of its document, a heading for the first passage under it, a question for the
passage that goes on to answer it. What many documents share ("Introduction", "See also") asks for none of them; that
is told by counting documents, not by a list of words, so it holds in any language.

A query that its passage still holds, word for word, teaches no more than to look for the same words. So the passages
are written anew beside the queries: all without titles, as the specialisation paper trains (no passage can then be
told from another by having one), and without the questions that became queries. The other collections keep theirs.

Tamber et al., 2025, https://arxiv.org/abs/2502.19712, section 3 (text without titles).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from drama_models.collection import Collection
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from training.augment.chunk import TITLE_SEPARATOR, joined
from training.augment.deduplicate import normalise
from training.augment.sentences import split_sentences, word_count
from training.data.examples import TrainingExample, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FoundKind = Literal["title", "heading", "question"]
SOURCE = "found"
MARKS = "?\uff1f\u061f\u037e\u1367"  # also the wide, Arabic, Greek and Ethiopic ones
QUESTION = re.compile(rf"[{MARKS}][\"'\u201d\u2019\u00bb\u300d\u300f)\]]*$")
ANY_MARK = re.compile(f"[{MARKS}]")
NUMBERING = re.compile(r"^(?:\d+[.)]|\d+(?:\.\d+)+\.?)\s+")  # of a section: `2.` or `2.1`, not the 3 of `3 valves`


@dataclass(frozen=True, kw_only=True)
class FindRecipe:
    """Settings of finding queries."""

    collection: Path
    """Collection of passages (BEIR folder), such as `chunk` makes; any other's records are documents of one passage."""
    out: Path
    """Collection to make: the passages without what became a query, and the queries in examples.jsonl."""
    kinds: tuple[FoundKind, ...] = ("title", "heading", "question")
    """What is taken; titles and headings that end with a question mark are questions."""
    min_words: int = 2
    """Titles and headings of fewer words, numbers not counted, are left out."""
    min_question_words: int = 4
    """Questions of fewer words are left out."""
    max_words: int = 32
    """Longer ones are left out."""
    min_answer_words: int = 8
    """A question inside a passage is left out where fewer words of statements follow it there."""
    max_documents: int = 3
    """What more documents than this have is left out."""
    language: str = "en"
    """Two-letter code, for where sentences end."""

    def __post_init__(self) -> None:
        if not self.kinds or not 0 < min(self.min_words, self.min_question_words) <= self.max_words:
            raise ValueError(
                f"kinds={list(self.kinds)} must not be empty; min_words={self.min_words} and "
                f"min_question_words={self.min_question_words} must be 1 to max_words={self.max_words}; try 2 and 4."
            )
        if self.min_answer_words < 1 or self.max_documents < 1:
            raise ValueError(
                f"min_answer_words={self.min_answer_words} and max_documents={self.max_documents} must be positive; "
                "the defaults are 8 and 3."
            )


@dataclass(frozen=True)
class Found:
    """Something in a document that may serve as a query."""

    text: str
    place: str
    """title, heading, or question with the number of the sentence."""
    passage: str
    """Id of the passage that it asks for."""
    document: str
    """Id of the passage's document."""
    answer_words: int | None = None
    """Words of the statements that follow it in its passage; None for what stands above the passage."""

    @property
    def kind(self) -> FoundKind:
        """What it is: by its place, except that a title may ask."""
        if QUESTION.search(self.text):
            return "question"
        return "heading" if self.place == "heading" else "title"

    @property
    def key(self) -> str:
        """Equal for texts that differ in case and spacing only."""
        return " ".join(self.text.casefold().split())

    def example(self) -> TrainingExample:
        """As a training example."""
        query_id = f"{self.passage}:{SOURCE}-{self.place}"
        return TrainingExample(
            query_id=query_id, query=self.text, positive_ids=[self.passage], task=self.kind, source=SOURCE
        )


def find_queries(recipe: FindRecipe) -> dict[str, Any]:
    """Write the queries and the passages without them; returns the provenance record.

    A collection without titles, headings and questions gives no queries, which is no error: crops remain.

    Raises:
        CollectionError: the collection is malformed.
    """
    finder = _Finder(recipe)
    with atomic_folder(recipe.out) as partial:
        Collection.write(partial, (_without(record, kept, recipe.language) for record, kept in finder.judged()))
        kept = (each for _, found in finder.judged() for each in found)
        write_examples(partial / "examples.jsonl", (each.example() for each in kept))
        return write_provenance(
            partial,
            stage="training.find",
            recipe=recipe,
            inputs={"collection": recipe.collection},
            figures={"kept": dict(finder.kept), "dropped": dict(finder.dropped)},
            parent=recipe.collection,
        )


def found_in(
    record: Mapping[str, Any], *, opens_document: bool, opens_section: bool, language: str = "en"
) -> Iterator[Found]:
    """Title, heading and questions of one passage.

    Args:
        record: line of a corpus; `document` and `heading` as `chunk` writes them.
        opens_document: whether it is the first passage of its document, which its title asks for.
        opens_section: the same of its heading.
        language: two-letter code.
    """
    key, document = record["_id"], record.get("document") or record["_id"]
    heading = record.get("heading") or ""
    title = (record.get("title") or "").removesuffix(f"{TITLE_SEPARATOR}{heading}" if heading else "")
    if opens_document and title:
        yield Found(NUMBERING.sub("", title), "title", key, document)
    if opens_section and heading and heading != title:
        yield Found(NUMBERING.sub("", heading), "heading", key, document)
    if ANY_MARK.search(record["text"]):
        sentences = split_sentences(record["text"], language)
        words = [0 if QUESTION.search(sentence) else word_count(sentence) for sentence in sentences]
        for number, sentence in enumerate(sentences):
            if QUESTION.search(sentence):
                yield Found(sentence, f"question{number}", key, document, answer_words=sum(words[number:]))


class _Finder:
    """What one call found: how many documents share a text, and what was kept and dropped of it."""

    def __init__(self, recipe: FindRecipe) -> None:
        self.recipe, self.collection = recipe, Collection(recipe.collection)
        self.documents: Counter[str] = Counter()
        last: dict[str, str] = {}
        for _, found in self._candidates():
            for each in found:
                if last.get(each.key) != each.document:
                    self.documents[each.key] += 1
                    last[each.key] = each.document
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def judged(self) -> Iterator[tuple[dict[str, Any], list[Found]]]:
        """Each passage with the queries that were kept of it; the counts are those of the last time through."""
        self.kept.clear()
        self.dropped.clear()
        seen: set[str] = set()
        for record, found in self._candidates():
            kept = []
            for each in found:
                reason = self._objection(each, seen)
                if reason:
                    self.dropped[reason] += 1
                    continue
                seen.add(each.key)
                self.kept[each.kind] += 1
                kept.append(each)
            yield record, kept

    def _candidates(self) -> Iterator[tuple[dict[str, Any], list[Found]]]:
        document, headings = None, set[str]()
        for record, checked in zip(self.collection.records(), self.collection.documents(), strict=True):
            current, heading = record.get("document") or checked.id, record.get("heading") or ""
            opens_document = current != document
            if opens_document:
                document, headings = current, set()
            opens_section = heading not in headings
            headings.add(heading)
            found = found_in(
                record, opens_document=opens_document, opens_section=opens_section, language=self.recipe.language
            )
            yield record, [each for each in found if each.kind in self.recipe.kinds]

    def _objection(self, found: Found, seen: set[str]) -> str:
        """Why it is no query; empty where it is one."""
        least = self.recipe.min_question_words if found.kind == "question" else self.recipe.min_words
        if found.place == "title" and found.text == unquote(PurePosixPath(found.document).stem):
            return "name of a file"
        if word_count(normalise(found.text)) < least:
            return "too short"
        if word_count(found.text) > self.recipe.max_words:
            return "too long"
        if self.documents[found.key] > self.recipe.max_documents:
            return f"in more than {self.recipe.max_documents} documents"
        if found.answer_words is not None and found.answer_words < self.recipe.min_answer_words:
            return "no answer behind it"
        return "duplicate" if found.key in seen else ""


def _without(record: dict[str, Any], kept: list[Found], language: str) -> dict[str, Any]:
    """The passage without its title, and without the questions that became queries."""
    asked = {int(each.place.removeprefix("question")) for each in kept if each.answer_words is not None}
    text = record["text"]
    if asked:
        sentences = split_sentences(text, language)
        text = joined([sentence for number, sentence in enumerate(sentences) if number not in asked])
    return record | {"title": "", "text": text}
