"""Queries without a large model: sentences of the passages themselves (DRAGON's and DRAMA's cropping).

A sentence is a query, its passage the positive. Which sentences are drawn depends on the seed and the passage's id
alone, so a corpus that has grown keeps the queries it had.

Lin et al., 2023, https://arxiv.org/abs/2302.07452, section 4.1; DRAMA, https://arxiv.org/abs/2502.18460, section 3.1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from training.augment.sentences import SentenceRules, split_sentences, word_count
from training.data.examples import TrainingExample, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = "crop"


@dataclass(frozen=True, kw_only=True)
class CropRecipe:
    """Settings of sentence cropping."""

    collection: Path
    """Collection of passages (BEIR folder)."""
    out: Path
    """Training examples to make: JSON lines."""
    per_passage: int = 1
    """Sentences drawn from each passage, without replacement; 0 takes every sentence."""
    min_words: int = 4
    """Shorter sentences are no queries; two characters count as a word where none are spaced."""
    rules: SentenceRules = "sentencex"
    """Where sentences end: sentencex (about 300 languages), or moses, as DRAGON, where Moses has the language."""
    language: str = "en"
    """Two-letter code."""
    seed: int = 42
    """Decides which sentences are drawn."""

    def __post_init__(self) -> None:
        if self.per_passage < 0 or self.min_words < 0:
            raise ValueError(
                f"per_passage={self.per_passage} and min_words={self.min_words} must not be negative; 0 means no limit."
            )


@dataclass(frozen=True)
class Crop:
    """One sentence of a passage as a query."""

    sentence_index: int
    """Place in the passage, from 0."""
    query: str
    rest: str
    """The other sentences, for inverse-cloze training."""


def sentence_crops(text: str, language: str = "en", rules: SentenceRules = "sentencex") -> list[Crop]:
    """Every sentence of a passage as a query; one that occurs twice counts twice."""
    sentences = split_sentences(text, language, rules)
    return [
        Crop(index, sentence, " ".join(sentences[:index] + sentences[index + 1 :]))
        for index, sentence in enumerate(sentences)
    ]


def crop(recipe: CropRecipe) -> int:
    """Write a training example for each drawn sentence; returns their number.

    Raises:
        CollectionError: a malformed collection, or one without a sentence that is long enough.
    """
    count = write_examples(recipe.out, cropped_examples(recipe))
    if not count:
        recipe.out.unlink()
        raise CollectionError(
            f"{recipe.collection} has no sentence of {recipe.min_words} words; lower min_words, or check the language."
        )
    return count


def cropped_examples(recipe: CropRecipe) -> Iterator[TrainingExample]:
    """The examples of each passage in turn, sentences in the passage's order."""
    for document in Collection(recipe.collection).documents():
        crops = sentence_crops(document.text, recipe.language, recipe.rules)
        crops = [each for each in crops if word_count(each.query) >= recipe.min_words]
        if 0 < recipe.per_passage < len(crops):
            draw = random.Random(f"{recipe.seed}:{document.id}").sample(range(len(crops)), recipe.per_passage)  # noqa: S311
            crops = [crops[position] for position in sorted(draw)]
        for each in crops:
            yield TrainingExample(
                query_id=f"{document.id}:crop{each.sentence_index}",
                query=each.query,
                positive_ids=[document.id],
                task=SOURCE,
                source=SOURCE,
            )
