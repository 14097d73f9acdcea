"""In-context batches against the rule written out as a slow loop, and what their draws must never do."""

from __future__ import annotations

import collections
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drama_models.prompts import INSTRUCTED, token_ids
from tests.conftest import TEXTS
from tests.replays.toy_tokenizer import PATTERN, text_of, toy_tokenizer
from training.data.batches import TextBatch
from training.data.datasets import Task
from training.prompts import (
    InContextSettings,
    document_texts,
    draw_examples,
    in_context_documents,
    in_context_queries,
)
from training.start import encoder_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTRUCTION = "Find the text."
SMALL = InContextSettings(
    query_max_length=90,
    document_max_length=16,
    kept_for_query=30,
    example_query_max_length=12,
    example_document_max_length=9,
)


def batch_of(rows: int, *, name: str = "retrieval", use_examples: bool = True) -> TextBatch:
    """Rows with one positive and one hard negative each."""
    return TextBatch(
        task=Task(name=name, instruction=INSTRUCTION, use_examples=use_examples),
        dataset="texts",
        query_ids=[f"q{row}" for row in range(rows)],
        queries=[TEXTS[row][: 12 + row] for row in range(rows)],
        document_ids=[f"d{row}" for row in range(2 * rows)],
        documents=[TEXTS[30 + row] for row in range(2 * rows)],
        positives=list(range(0, 2 * rows, 2)),
        absent=[False] * (2 * rows),
        scores=[[float("nan")] * 2] * rows,
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return toy_tokenizer(
        ["<instruct><query><response>\n", INSTRUCTION, *TEXTS, *(TEXTS[row][: 12 + row] for row in range(40))]
    )


def by_hand(batch: TextBatch, row: int, seed: int, step: int) -> str:
    """The finished query of one row, put together and cut token by token."""

    def tokens(text: str) -> list[str]:
        return re.findall(PATTERN, text)

    draws = draw_examples(len(batch.queries), 5, seed=seed, step=step)
    queries = [f"<instruct>{INSTRUCTION}\n<query>{query}" for query in batch.queries]
    prefix = ""
    for other in [other for other in draws.rows[row] if other != row][: draws.counts[row]]:
        first, second = tokens(queries[other])[:12], tokens(batch.documents[2 * other])[:9]
        longer = f"{prefix}{''.join(first)}\n<response>{''.join(second)}\n\n"
        if len(tokens(longer)) + 2 > 90 - 30:
            break
        prefix = longer
    kept = tokens(prefix + queries[row])[: 90 - 4]
    return f"<s>{''.join(kept)}\n<response></s>"


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 12), seed=st.integers(0, 1 << 20), step=st.integers(0, 1 << 20))
def test_queries_are_those_of_the_rule(tokenizer: Tokenizer, rows: int, seed: int, step: int) -> None:
    batch = batch_of(rows)
    made = in_context_queries(batch, tokenizer, SMALL, seed=seed, step=step)
    assert [text_of(ids, tokenizer) for ids in made] == [by_hand(batch, row, seed, step) for row in range(rows)]
    assert max(map(len, made)) <= 90


def test_an_example_is_whole_or_absent_and_never_the_query_itself(tokenizer: Tokenizer) -> None:
    batch, lengths = batch_of(20), set()
    for step in range(6):
        for row, ids in enumerate(in_context_queries(batch, tokenizer, SMALL, seed=1, step=step)):
            *examples, query = text_of(ids, tokenizer).split("\n\n")
            lengths.add(len(examples))
            assert batch.queries[row] in query
            assert all("\n<response>" in example for example in examples)
            own = batch.documents[2 * row][:20]
            assert not any(own in example for example in examples)
    assert lengths == {0, 1, 2}  # a third never fits in 60 tokens


def test_counts_are_uniform_and_rows_distinct() -> None:
    draws = [draw_examples(64, 5, seed=7, step=step) for step in range(100)]
    counted = collections.Counter(count for drawn in draws for count in drawn.counts)
    assert sorted(counted) == [0, 1, 2, 3, 4, 5]
    assert max(abs(number - 6400 / 6) for number in counted.values()) < 5 * (6400 * 5 / 36) ** 0.5  # five deviations
    for drawn in draws:
        for row in range(64):
            chosen = drawn.chosen(row)
            assert len(chosen) == len(set(chosen)) == drawn.counts[row]
            assert row not in chosen


def test_draws_depend_on_seed_and_step_alone() -> None:
    again = draw_examples(32, 5, seed=3, step=9)
    assert again == draw_examples(32, 5, seed=3, step=9)
    assert again != draw_examples(32, 5, seed=3, step=10)
    assert again != draw_examples(32, 5, seed=4, step=9)
    assert draw_examples(1, 5, seed=3, step=9).chosen(0) == []


def test_categories_answer_the_examples_of_clustering(tokenizer: Tokenizer) -> None:
    categories = [TEXTS[row].split()[0] for row in range(8)]
    batch = replace(batch_of(8, name="clustering"), categories=categories)
    made = in_context_queries(batch, tokenizer, SMALL, seed=0, step=0)
    answers = {part.split("\n\n")[0] for ids in made for part in text_of(ids, tokenizer).split("<response>")[1:-1]}
    assert answers
    assert answers <= set(categories)
    retrieval = batch_of(8)
    plain, with_categories = (
        in_context_queries(each, tokenizer, SMALL, seed=0, step=0)
        for each in (retrieval, replace(retrieval, categories=categories))
    )
    assert with_categories == plain  # there the positive answers


def test_a_text_that_is_cut_within_a_letter_keeps_its_response_tag() -> None:
    tags = ("<instruct>", "<query>", "<response>")
    tokenizer = encoder_tokenizer(Path("demo/source"), tags)  # bytes: three tokens for most letters of this text
    text = "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย " * 20
    for length in range(40, 70):
        settings = InContextSettings(document_max_length=length)
        (document,) = document_texts([text], INSTRUCTION, tokenizer, settings)
        (ids,) = token_ids([document], length, tokenizer)
        assert document.startswith(f"<instruct>{INSTRUCTION}\n<query>กรุงเทพ")
        assert tokenizer.decode(ids, skip_special_tokens=False).endswith("\n<response><|end_of_text|>")
        assert length - 3 <= len(ids) <= length


def test_documents_of_similarity_tasks_are_written_like_queries(tokenizer: Tokenizer) -> None:
    plain = in_context_documents(batch_of(3), tokenizer, SMALL)
    assert text_of(plain[0], tokenizer).startswith(f"<s>{TEXTS[30][:10]}")
    for name in ("sts", "clustering"):
        alike = in_context_documents(batch_of(3, name=name), tokenizer, SMALL)
        for ids, text in zip(alike, batch_of(3).documents, strict=True):
            written = text_of(ids, tokenizer)
            assert len(ids) == 16
            assert written.startswith(f"<s><instruct>{INSTRUCTION}\n<query>{text.split()[0]}")
            assert written.endswith("\n<response></s>")


def test_a_task_without_examples_and_impossible_settings(tokenizer: Tokenizer) -> None:
    made = in_context_queries(batch_of(8, use_examples=False), tokenizer, SMALL, seed=0, step=0)
    assert all("\n\n" not in text_of(ids, tokenizer) for ids in made)
    with pytest.raises(ValueError, match="max_examples=5 needs a response tag"):
        InContextSettings(tags=INSTRUCTED)
    with pytest.raises(ValueError, match="max_examples=-1 must be at least 0"):
        InContextSettings(max_examples=-1)
    assert InContextSettings(max_examples=0, tags=INSTRUCTED).tags.end == ""
