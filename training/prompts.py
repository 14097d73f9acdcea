"""In-context training: queries behind solved examples that are drawn from their own batch, as bge-en-icl was trained.

Every query gets 0 to 5 examples, other rows of its batch and never its own, so that the model learns to do with and
without. An example that does not fit is left out whole, and all after it; the query alone is cut. Draws are a function
of the seed and the step, and can be given instead.

Li et al., 2024, "Making Text Embedders Few-Shot Learners", https://arxiv.org/abs/2409.15700, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from drama_models.prompts import IN_CONTEXT, InstructFormat, cut_texts, ends, query_limit, token_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from training.data.batches import TextBatch
    from training.data.datasets import Task

EXAMPLE_DRAWS = 5409  # tells these draws from others of the same seed
LIKE_QUERIES = ("sts", "clustering")  # tasks whose documents are texts of the same kind as the queries

# B = queries, N = documents of a query


@dataclass(frozen=True, kw_only=True)
class InContextSettings:
    """Lengths and numbers of in-context training; defaults as for bge-en-icl."""

    max_examples: int = 5
    """Examples before a query are drawn from 0 to this number."""
    query_max_length: int = 2048
    """Tokens of a query with its examples, BOS and EOS included."""
    document_max_length: int = 512
    """Tokens of a document, BOS and EOS included."""
    kept_for_query: int = 512
    """Tokens of `query_max_length` that examples leave to the query."""
    example_query_max_length: int = 256
    """Tokens of the query of an example, with its instruction and tags."""
    example_document_max_length: int = 256
    """Tokens of the response of an example."""
    tags: InstructFormat = field(default_factory=lambda: IN_CONTEXT)
    """Around instruction, query and response."""

    def __post_init__(self) -> None:
        if self.max_examples and self.tags.response is None:
            raise ValueError(f"max_examples={self.max_examples} needs a response tag; set one, or set max_examples=0.")
        if self.max_examples < 0 or self.query_max_length < 3 or self.document_max_length < 3:
            raise ValueError(
                f"max_examples={self.max_examples} must be at least 0, query_max_length={self.query_max_length} and "
                f"document_max_length={self.document_max_length} at least 3, with room between the ends of a text."
            )


@dataclass(frozen=True, kw_only=True)
class ExampleDraws:
    """What is random about the examples of one batch."""

    counts: list[int]
    """B: examples that a query is to get."""
    rows: list[list[int]]
    """Rows of the batch to take them from, in this order: one more than the count, since the own row does not serve."""

    def chosen(self, row: int) -> list[int]:
        """Rows of the examples of one query."""
        return [other for other in self.rows[row] if other != row][: self.counts[row]]


def draw_examples(num_rows: int, max_examples: int, *, seed: int, step: int) -> ExampleDraws:
    """How many examples each query of a batch gets, uniform in 0 to `max_examples`, and from which rows."""
    generator = np.random.default_rng((EXAMPLE_DRAWS, seed, step))
    counts = generator.integers(max_examples, size=num_rows, endpoint=True).tolist()
    rows = [
        generator.choice(num_rows, min(count + 1, num_rows), replace=False).tolist() if count else []
        for count in counts
    ]
    return ExampleDraws(counts=counts, rows=rows)


def in_context_queries(
    batch: TextBatch, tokenizer: Tokenizer, settings: InContextSettings, *, seed: int, step: int
) -> list[list[int]]:
    """Token ids of a batch's queries, each behind examples from its batch where the task allows them.

    Args:
        batch: of one dataset; its task gives the instruction. Where a query of a clustering task serves as an example,
            its category answers it, if it has one; any other is answered by its positive.
        tokenizer: sets BOS and EOS itself and does not truncate; see `drama_models.tokenisation.load_tokenizer`.
        settings: lengths, numbers and tags.
        seed: of the draws.
        step: of the batch.

    Returns:
        B lists of ids, BOS and EOS included, at most `settings.query_max_length` each.
    """
    positives = [batch.documents[place] for place in batch.positives]
    responses = example_responses(batch.task, positives, batch.categories)
    draws = draw_examples(
        len(batch.queries), settings.max_examples if batch.task.use_examples else 0, seed=seed, step=step
    )
    before = settings.tags.before(batch.task.instruction or None)
    texts = query_texts([before + query for query in batch.queries], responses, draws, tokenizer, settings)
    return token_ids(texts, settings.query_max_length, tokenizer)


def example_responses(task: Task, positives: Sequence[str], categories: Sequence[str]) -> list[str]:
    """What answers each query where it serves as an example: in clustering its category, if it has one; its positive.

    Args:
        task: of the batch.
        positives: B.
        categories: B, "" where there is none; or none at all.
    """
    if task.name != "clustering" or not categories:
        return list(positives)
    return [category or positive for category, positive in zip(categories, positives, strict=True)]


def in_context_documents(batch: TextBatch, tokenizer: Tokenizer, settings: InContextSettings) -> list[list[int]]:
    """Token ids of a batch's documents, B * N; those of similarity and clustering tasks are written like queries."""
    texts = batch.documents
    if batch.task.name in LIKE_QUERIES:
        texts = document_texts(texts, batch.task.instruction or None, tokenizer, settings)
    return token_ids(texts, settings.document_max_length, tokenizer)


def query_texts(
    queries: Sequence[str],
    responses: Sequence[str],
    draws: ExampleDraws,
    tokenizer: Tokenizer,
    settings: InContextSettings,
) -> list[str]:
    """Queries behind their examples and before the response tag, without BOS and EOS.

    Args:
        queries: with instruction and tags.
        responses: what answers each query when it serves as an example.
        draws: which rows become examples of which.
        tokenizer: as for `in_context_queries`.
        settings: lengths and tags.
    """
    prefixes = _prefixes(queries, responses, draws, tokenizer, settings)
    whole = [prefix + query for prefix, query in zip(prefixes, queries, strict=True)]
    limit = query_limit(settings.query_max_length, settings.tags, tokenizer)
    return [text + settings.tags.end for text in cut_texts(whole, limit, tokenizer)]


def document_texts(
    documents: Sequence[str], instruction: str | None, tokenizer: Tokenizer, settings: InContextSettings
) -> list[str]:
    """Documents written like queries without examples, without BOS and EOS."""
    before = settings.tags.before(instruction)
    limit = query_limit(settings.document_max_length, settings.tags, tokenizer)
    return [text + settings.tags.end for text in cut_texts([before + text for text in documents], limit, tokenizer)]


def _prefixes(
    queries: Sequence[str],
    responses: Sequence[str],
    draws: ExampleDraws,
    tokenizer: Tokenizer,
    settings: InContextSettings,
) -> list[str]:
    """The examples of each query: one is added to all prefixes at a time, until the next would be too long."""
    first = cut_texts(queries, settings.example_query_max_length, tokenizer)
    second = cut_texts(responses, settings.example_document_max_length, tokenizer)
    examples = [f"{query}{settings.tags.response}{response}\n\n" for query, response in zip(first, second, strict=True)]
    limit = settings.query_max_length - settings.kept_for_query - ends(tokenizer)
    prefixes = [""] * len(queries)
    waiting = {row: chosen for row in range(len(queries)) if (chosen := draws.chosen(row))}
    while waiting:
        longer = {row: prefixes[row] + examples[chosen[0]] for row, chosen in waiting.items()}
        encodings = tokenizer.encode_batch_fast(list(longer.values()), add_special_tokens=False)
        fitting = {row for row, encoding in zip(longer, encodings, strict=True) if len(encoding) <= limit}
        for row in fitting:
            prefixes[row] = longer[row]
        waiting = {row: chosen[1:] for row, chosen in waiting.items() if row in fitting and len(chosen) > 1}
    return prefixes
