"""Candidates in a better order: by a large model that sees them all in one prompt, or by a cross-encoder.

Listwise, as in DRAMA (section 3.1.3): twenty passages in one prompt, the answer an order `[3] > [1] > ...`. A longer
list is gone through from its end in overlapping windows, so that the best rise to the top (RankGPT). What is not
named keeps its place behind what is, and incomplete answers are counted. A list that the model gave no answer for is
left out: its old order, with ranks for scores, would be taken for what the model thinks.

DRAMA, https://arxiv.org/abs/2502.18460; Sun et al., 2023, "Is ChatGPT Good at Search?", https://arxiv.org/abs/2304.09542
"""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.batching import windows
from drama_models.collection import Collection
from drama_models.errors import CollectionError, EndpointError
from drama_models.evaluation import run_lines
from drama_models.folders import atomic_file, sha256_of_file
from drama_models.tokenisation import load_tokenizer
from training.augment.cross_encoder import CrossEncoderReranker, cross_encoder_identity
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling
from training.augment.runs import read_queries, stream_run, write_in_parts, write_record
from training.augment.templates import Prompt, load_prompt
from training.augment.untrusted import CLOSE, OPEN, neutralise
from training.data.documents import TextStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

    from training.augment.runs import Hits

    RankedQuery = tuple[str, str, Hits]  # id, text, and what was found for it

NUMBER = re.compile("[0-9]+")
DIGITS = 9  # of a number that can be a rank
CHARACTERS_PER_TOKEN = 3  # where no tokenizer is given; few, so that the budget is kept
PASSAGE_OVERHEAD_TOKENS = 12  # of a passage's number and tags
LISTWISE_QUERIES = 2048  # whose passages are held in memory together
PART_QUERIES = 256  # what a kill may cost a cross-encoder


@dataclass(frozen=True, kw_only=True)
class Listwise:
    """How a large model reranks."""

    window: int = 20
    """Passages in one prompt."""
    step: int = 10
    """Places between windows of a list that is longer than one."""
    passage_tokens: int = 256
    """Tokens kept of each passage."""
    prompt_tokens: int = 7000
    """Tokens of all passages of a prompt; above it the longest are shortened first, so that all are cut evenly."""
    tokenizer: Path | None = None
    """Model folder whose tokenizer counts; by default a token is taken for three characters."""
    prompts: Path | None = None
    """Folder whose rerank.txt replaces the shipped prompt."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0, top_p=1.0))
    """How the model draws its answer."""

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.window or self.window < 2:
            raise ValueError(f"window={self.window} and step={self.step} must be 0 < step <= window; try 20 and 10.")
        if not self.passage_tokens > 0 or self.prompt_tokens < self.window * (PASSAGE_OVERHEAD_TOKENS + 1):
            raise ValueError(
                f"prompt_tokens={self.prompt_tokens} leaves no room for {self.window} passages; try "
                f"{self.window * (self.passage_tokens + PASSAGE_OVERHEAD_TOKENS)}."
            )


@dataclass(frozen=True, kw_only=True)
class RerankRecipe:
    """Settings of reranking."""

    collection: Path
    """Collection of passages (BEIR folder)."""
    run: Path
    """TREC run file whose lists are put into a new order, such as `mine` makes."""
    out: Path
    """TREC run file to make."""
    examples: Path | None = None
    """Training examples whose queries the run is for; the collection's own queries by default."""
    k: int = 20
    """Documents of each list that are reranked; the rest is left out."""
    llm: Endpoint | None = None
    """A large model; or give cross_encoder."""
    listwise: Listwise = field(default_factory=Listwise)
    """How a large model reranks."""
    cross_encoder: str | None = None
    """Folder or hub name of any sentence-transformers CrossEncoder."""
    max_length: int = 512
    """Tokens of query and passage together, for the cross-encoder."""
    batch_size: int = 32
    """Pairs that the cross-encoder scores at once."""
    device: str | None = None
    """For the cross-encoder, such as cuda; a GPU if there is one by default."""
    cache: Path | None = None
    """File of the answers that were paid for; OUT.answers beside the run by default. Of a cross-encoder, file of the
    scores of pairs, so that another call scores only those that are new; none by default."""

    def __post_init__(self) -> None:
        if (self.llm is None) == (self.cross_encoder is None):
            raise ValueError("Give either llm (its url and model) or cross_encoder.")
        if self.k < 1 or self.batch_size < 1 or self.max_length < 8:
            raise ValueError(
                f"k={self.k}, batch_size={self.batch_size} and max_length={self.max_length} must be positive; "
                "the defaults are 20, 32 and 512."
            )


@dataclass(frozen=True)
class Order:
    """What an answer says about the order of n passages, numbered from 1."""

    order: list[int]
    """All numbers, best first."""
    listed: list[int]
    """Those that the model named."""

    @property
    def complete(self) -> bool:
        """Whether the model named every passage."""
        return len(self.listed) == len(self.order)

    @property
    def appended(self) -> list[int]:
        """Those it left out, in the order they had."""
        return self.order[len(self.listed) :]


@dataclass
class RerankFigures:
    """What came of a run."""

    queries: int = 0
    windows: int = 0
    incomplete: int = 0
    """Answers that left passages out."""
    unanswered: int = 0
    """Lists left out since the model gave no answer for one of their windows."""
    shortened: int = 0
    """Passages cut to keep a prompt within its budget."""
    usage: dict[str, Any] = field(default_factory=dict)
    """Answers, tokens and cost of the large model; empty for a cross-encoder."""


def parse_order(raw: str, count: int) -> Order:
    """Every number in the answer that is a passage's, at its first place; then those it left out, as they stood."""
    listed: dict[int, None] = {}
    for digits in NUMBER.findall(raw):
        digits = digits.lstrip("0")
        number = int(digits) if 0 < len(digits) <= DIGITS else 0
        if 1 <= number <= count:
            listed.setdefault(number)
    rest = [number for number in range(1, count + 1) if number not in listed]
    return Order([*listed, *rest], list(listed))


def even_limit(lengths: Sequence[int], budget: int) -> int:
    """The longest length to which all may be cut so that their sum stays within the budget.

    Short ones keep their length, and what they do not need goes to the long ones.
    """
    if sum(lengths) <= budget:
        return max(lengths, default=0)
    ordered = sorted(lengths)
    for index, (length, before) in enumerate(zip(ordered, accumulate([0, *ordered]), strict=False)):
        if before + length * (len(ordered) - index) > budget:
            return (budget - before) // (len(ordered) - index)
    return ordered[-1]


def sliding_spans(count: int, window: int, step: int) -> list[tuple[int, int]]:
    """Start and end of each window of a list, from the list's end to its start."""
    starts = list(range(max(count - window, 0), 0, -step))
    return [(start, start + window) for start in starts] + [(0, min(window, count))]


class ListwiseReranker:
    """Reranks with a large model; see `Listwise`."""

    def __init__(self, client: ChatClient, settings: Listwise) -> None:
        self.client, self.settings = client, settings
        self.figures = RerankFigures()
        self._prompt: Prompt = load_prompt("rerank", settings.prompts)
        self._tokenizer: Tokenizer | None = (
            load_tokenizer(settings.tokenizer, set_ends=False) if settings.tokenizer else None
        )

    def rerank(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[int] | None]:
        """New order of each query's passages; None where the model gave no answer.

        Args:
            queries: texts.
            passages: of each query, in the order they were found.

        Returns:
            Places in the old order, counted from 0, best first.

        Raises:
            EndpointError: the endpoint does not answer.
        """
        orders = [list(range(len(texts))) for texts in passages]
        spans = [sliding_spans(len(texts), self.settings.window, self.settings.step) for texts in passages]
        unanswered: set[int] = set()
        for round_number in range(max(map(len, spans), default=0)):
            asked = []
            for number, span in enumerate(spans):
                if number in unanswered:
                    continue
                for start, end in span[round_number : round_number + 1]:
                    shown = [passages[number][place] for place in orders[number][start:end]]
                    if len(shown) > 1:
                        asked.append(((number, start, end), self._request(queries[number], shown)))
            for (number, start, end), answer in self.client.ask(asked, total=len(asked)):
                self.figures.windows += 1
                if answer is None:
                    unanswered.add(number)
                    continue
                found = parse_order(answer.text, end - start)
                self.figures.incomplete += not found.complete
                members = orders[number][start:end]
                orders[number][start:end] = [members[place - 1] for place in found.order]
        self.figures.queries += len(queries)
        self.figures.unanswered += len(unanswered)
        return [None if number in unanswered else order for number, order in enumerate(orders)]

    def _request(self, query: str, passages: list[str]) -> ChatRequest:
        shown = "\n".join(
            f"[{number}] {OPEN}{text}{CLOSE}" for number, text in enumerate(self._shortened(passages), start=1)
        )
        values = {"count": len(passages), "query": neutralise(query), "passages": shown}
        return ChatRequest(self._prompt.messages(values), self.settings.sampling)

    def _shortened(self, passages: list[str]) -> list[str]:
        """Neutralised passages, each cut to its own limit and all of them to the prompt's."""
        texts = [neutralise(passage) for passage in passages]
        ends = [self._token_ends(text) for text in texts]
        lengths = [min(len(each), self.settings.passage_tokens) for each in ends]
        limit = even_limit(lengths, self.settings.prompt_tokens - PASSAGE_OVERHEAD_TOKENS * len(texts))
        self.figures.shortened += sum(length > limit for length in lengths)
        kept = [min(length, limit) for length in lengths]
        return [
            text[: each[length - 1]] if length else "" for text, each, length in zip(texts, ends, kept, strict=True)
        ]

    def _token_ends(self, text: str) -> list[int]:
        """Where each token ends in the text."""
        if self._tokenizer is not None:
            return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        size = CHARACTERS_PER_TOKEN
        return [min(end, len(text)) for end in range(size, len(text) + size, size)]


def rerank(recipe: RerankRecipe) -> RerankFigures:
    """Write the run in its new order. A killed call goes on; answers that were paid for are not asked for again.

    Raises:
        CollectionError: a malformed collection or run, or one that names unknown ids.
        EndpointError: the endpoint does not answer, or orders no list.
        ModelFolderError: the cross-encoder cannot be loaded.
    """
    lists = _lists(recipe)
    first = next(lists, None)
    if first is None:
        raise CollectionError(f"{recipe.run} is empty; make it with `python -m training mine`.")
    lists = chain([first], lists)
    model_name = recipe.llm.model if recipe.llm else Path(str(recipe.cross_encoder)).name
    name = "-".join(model_name.split()) or "cross-encoder"
    passages = _Passages(recipe)
    if recipe.llm is not None:
        figures = _rerank_listwise(recipe, recipe.llm, lists, passages, name)
    else:
        model = CrossEncoderReranker(
            str(recipe.cross_encoder), max_length=recipe.max_length, batch_size=recipe.batch_size, device=recipe.device,
            cache=recipe.cache,
        )  # fmt: skip

        def score(block: list[RankedQuery]) -> list[tuple[str, Hits]]:
            scored = model.scores([query for _, query, _ in block], [passages.of(hits) for _, _, hits in block])
            return [
                (key, _by_score([document for document, _ in hits], scores))
                for (key, _, hits), scores in zip(block, scored, strict=True)
            ]

        job = {
            "corpus": sha256_of_file(Collection(recipe.collection).corpus_file),
            "cross_encoder": cross_encoder_identity(str(recipe.cross_encoder)),
            "max_length": recipe.max_length,
        }
        with closing(model):
            count = write_in_parts(recipe.out, lists, score, job, name=name, part_queries=PART_QUERIES)
        figures = RerankFigures(queries=count)
    passages.remove()
    write_record(recipe.out, "training.rerank", recipe, asdict(figures))
    return figures


def _rerank_listwise(
    recipe: RerankRecipe, llm: Endpoint, lists: Iterator[RankedQuery], passages: _Passages, name: str
) -> RerankFigures:
    """The cache of answers is what a killed call goes on from."""
    client = ChatClient(llm, recipe.cache or recipe.out.parent / f"{recipe.out.name}.answers")
    reranker = ListwiseReranker(client, recipe.listwise)
    with atomic_file(recipe.out) as partial, partial.open("w", encoding="utf-8") as file:
        for block in windows(lists, LISTWISE_QUERIES):
            orders = reranker.rerank([query for _, query, _ in block], [passages.of(hits) for _, _, hits in block])
            for (key, _, hits), order in zip(block, orders, strict=True):
                if order is None:
                    continue
                ranked = [(hits[place][0], float(len(order) - rank)) for rank, place in enumerate(order)]
                file.writelines(run_lines(key, ranked, name))
        if reranker.figures.unanswered == reranker.figures.queries:
            raise EndpointError(
                f"{llm.model} put none of {reranker.figures.queries:,} lists in order "
                f"({client.this_run.reasons.most_common(1)[0][0]}); look at the server's log."
            )
    reranker.figures.usage = asdict(client.usage)
    return reranker.figures


class _Passages:
    """Texts of a collection's passages by id, from disk."""

    def __init__(self, recipe: RerankRecipe) -> None:
        self._recipe = recipe
        self._cache = recipe.out.parent / f".{recipe.out.name}.texts"
        self._store = TextStore(Collection(recipe.collection).corpus_file, self._cache)

    def of(self, hits: Hits) -> list[str]:
        """Contents of the documents of a list."""
        rows = self._store.rows([document for document, _ in hits])
        if (rows < 0).any():
            unknown = hits[int(np.flatnonzero(rows < 0)[0])][0]
            raise CollectionError(
                f"{self._recipe.run}: document {unknown!r} is not in {self._recipe.collection}; pass the collection "
                "that the run was made for."
            )
        return self._store.contents(rows)

    def remove(self) -> None:
        """Take the copy on disk away."""
        del self._store
        shutil.rmtree(self._cache)


def _lists(recipe: RerankRecipe) -> Iterator[RankedQuery]:
    """The run's lists with their queries' texts, cut to k."""
    queries = dict(read_queries(recipe.collection, recipe.examples))
    for key, hits in stream_run(recipe.run):
        if key not in queries:
            raise CollectionError(
                f"{recipe.run}: query {key!r} is not among the queries; pass the examples that the run was made for."
            )
        yield key, queries[key], hits[: recipe.k]


def _by_score(documents: list[str], scores: list[float]) -> Hits:
    return sorted(zip(documents, scores, strict=True), key=lambda hit: -hit[1])
