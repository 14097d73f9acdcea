"""Prompts of models that read an instruction, and solved examples of the task, in front of a query.

Formats and limits are those of bge-en-icl and bge-multilingual-gemma2. Examples are never cut: only the query is, so
that a prompted query may be as long as its examples and `max_length` together. A text is cut where its last kept token
ends and never decoded, which with SentencePiece would add a space before every retokenised text.

Li et al., 2024, "Making Text Embedders Few-Shot Learners", https://arxiv.org/abs/2409.15700
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import PromptError
from drama_models.tokenisation import checked_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from drama_models.profile import Profile

EXAMPLE_KEYS = ("instruct", "query", "response")


@dataclass(frozen=True, kw_only=True)
class InstructFormat:
    """The tags around instruction, query and response."""

    instruction: str = "<instruct>"
    """Before the instruction."""
    query: str = "\n<query>"
    """Between instruction and query."""
    response: str | None = "\n<response>"
    """Before the response of an example; without its last spaces also after every query. None: no examples."""

    @property
    def end(self) -> str:
        """What follows every query."""
        return (self.response or "").rstrip(" ")

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tags that are tokens of their own, `<like this>`; none where they are plain text."""
        tags = (self.instruction, self.query, self.response or "")
        return tuple(tag.strip() for tag in tags if tag.strip().startswith("<"))

    def before(self, instruction: str | None) -> str:
        """What precedes a query under an instruction; nothing where there is none."""
        return "" if instruction is None else f"{self.instruction}{instruction}{self.query}"


IN_CONTEXT = InstructFormat()  # bge-en-icl
INSTRUCTED = InstructFormat(response=None)  # bge-multilingual-gemma2


@dataclass(frozen=True, kw_only=True)
class InContextExample:
    """A solved example of the task."""

    query: str = ""
    response: str = ""
    """A matching text; the label for classification, the category for clustering."""
    instruction: str | None = None
    """The task's where none is given."""

    @classmethod
    def of(cls, value: object, position: int) -> InContextExample:
        """The example itself, or one read from a mapping with the keys `query`, `response` and `instruct`.

        Raises:
            PromptError: another kind of value, an unknown key, or something that is not text; names the position.
        """
        if isinstance(value, InContextExample):
            return value
        if not isinstance(value, Mapping):
            raise PromptError(
                f"Example number {position} is {type(value).__name__}; pass mappings with `query` and `response`."
            )
        wrong = [key for key, text in value.items() if key not in EXAMPLE_KEYS or not isinstance(text, str | None)]
        if wrong:
            raise PromptError(
                f"Example number {position} has {wrong[0]!r}: {value[wrong[0]]!r}; "
                f"an example has only texts, named {', '.join(EXAMPLE_KEYS)}."
            )
        query, response, instruction = (value.get(key) for key in ("query", "response", "instruct"))
        return cls(
            query=checked_text(query or "", position),
            response=checked_text(response or "", position),
            instruction=None if instruction is None else checked_text(instruction, position),
        )


def examples_prefix(examples: Iterable[InContextExample], prompt: str, tags: InstructFormat) -> str:
    """The text of all examples, each followed by a blank line; empty without examples.

    Args:
        examples: in the order in which they are read.
        prompt: what precedes the query of an example without an instruction of its own.
        tags: with a response tag.
    """
    parts = (
        f"{prompt if example.instruction is None else tags.before(example.instruction)}{example.query}"
        f"{tags.response}{example.response}\n\n"
        for example in examples
    )
    return "".join(parts)


def count_tokens(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a text without BOS and EOS; the tokenizer must not truncate."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def cut_texts(texts: Sequence[str], max_tokens: int, tokenizer: Tokenizer) -> list[str]:
    """The start of each text up to the end of its token number `max_tokens`, BOS and EOS not counted.

    A character that several tokens make up, of which some would go, goes too: it would bring back all of them.
    """
    if max_tokens <= 0:
        return [""] * len(texts)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [
        text if len(encoding) <= max_tokens else text[: _whole_characters(encoding.offsets, max_tokens)]
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def _whole_characters(offsets: Sequence[tuple[int, int]], tokens: int) -> int:
    """Where at most so many tokens end, and with them the last character that they touch."""
    while tokens and offsets[tokens][0] < offsets[tokens - 1][1]:
        tokens -= 1
    return offsets[tokens - 1][1] if tokens else 0


def token_ids(texts: Sequence[str], limit: int, tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each text, BOS and EOS included, `limit` at most; what is cut stands before EOS."""
    rows = (encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts)))
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in rows]


def ends(tokenizer: Tokenizer) -> int:
    """Number of tokens that the tokenizer puts around a text, such as BOS and EOS."""
    return int(tokenizer.num_special_tokens_to_add(is_pair=False))


def query_limit(max_length: int, tags: InstructFormat, tokenizer: Tokenizer) -> int:
    """Tokens left for instruction and query when a query without examples has `max_length`."""
    return max_length - ends(tokenizer) - count_tokens(tags.end, tokenizer)


def prompted_limit(prefix: str, max_length: int, tags: InstructFormat, tokenizer: Tokenizer) -> int:
    """Tokens that a finished query behind its examples may have, BOS and EOS included."""
    content = count_tokens(prefix, tokenizer) + count_tokens(tags.end, tokenizer) + max_length
    return (content + 8) // 8 * 8 + 8


class InContextPrompter:
    """Puts queries behind one instruction and one list of examples, as bge-en-icl does at inference.

    Args:
        tokenizer: sets BOS and EOS itself and does not truncate.
        tags: with a response tag.
        prompt: what precedes the query, such as `tags.before(instruction)`.
        prefix: the examples, as `examples_prefix` gives them.
        max_length: tokens of a query without examples, BOS and EOS included.
    """

    def __init__(self, tokenizer: Tokenizer, tags: InstructFormat, prompt: str, prefix: str, max_length: int) -> None:
        self._tokenizer, self._tags, self._prompt, self._prefix = tokenizer, tags, prompt, prefix
        self._query_limit = query_limit(max_length, tags, tokenizer)
        self._limit = prompted_limit(prefix, max_length, tags, tokenizer)
        self._max_characters = 2 * max_length * max(map(len, tokenizer.get_vocab()), default=1)

    def texts(self, queries: Sequence[str]) -> list[str]:
        """The prompted queries, without BOS and EOS."""
        prompted = [self._prompt + query[: self._max_characters] for query in queries]
        kept = cut_texts(prompted, self._query_limit, self._tokenizer)
        return [self._prefix + text + self._tags.end for text in kept]

    def encode(self, queries: Sequence[str]) -> tuple[list[NDArray[np.int64]], int]:
        """Token ids of each prompted query, int64, (T,), and the number of queries that were cut."""
        texts = self.texts(queries)
        added = len(self._prefix) + len(self._prompt) + len(self._tags.end)
        cut = sum(len(text) < added + len(query) for text, query in zip(texts, queries, strict=True))
        rows = token_ids(texts, self._limit, self._tokenizer)
        return [np.array(row, dtype=np.int64) for row in rows], cut


def choose_prompt(profile: Profile, task: str | None, instruction: str | None) -> str:
    """What precedes every query of a call: that of the instruction, else that of the task, else the profile's.

    Raises:
        PromptError: an instruction that is not text or for a model without a format for one, or a task that it has no
            prompt for.
    """
    known = sorted({*profile.prompts, *profile.examples})
    if task is not None and task not in known:
        raise PromptError(
            f"task={task!r} is not among the tasks of this model, which are: {', '.join(known) or 'none'}. "
            "Pass one of them, or the task in words as instruction=."
        )
    if instruction is None:
        return profile.query_prompt if task is None else profile.prompts.get(task, profile.query_prompt)
    if profile.instruct is None:
        raise PromptError(
            f"This model has no format for an instruction; leave it out, or pass one of its tasks: {', '.join(known)}."
        )
    if not isinstance(instruction, str):
        raise PromptError(f"instruction is {type(instruction).__name__}; pass the task in words.")
    return profile.instruct.before(checked_text(instruction, 0))


def choose_examples(
    profile: Profile, task: str | None, examples: Iterable[InContextExample | Mapping[str, str]] | None
) -> tuple[InContextExample, ...]:
    """The examples of a call: those given, else those that the profile has for the task.

    Raises:
        PromptError: a malformed example, or any for a model that was not trained with examples.
    """
    if examples is None:
        return profile.examples.get(task or "query", ())
    chosen = tuple(InContextExample.of(example, position) for position, example in enumerate(examples))
    if chosen and (profile.instruct is None or profile.instruct.response is None):
        raise PromptError("This model was not trained with examples in front of a query; leave out examples=.")
    return chosen


def read_format(stored: Mapping[str, Any]) -> InstructFormat:
    """Tags from the `instruct_format` of config_sentence_transformers.json.

    Raises:
        PromptError: an unknown key, or a tag that is not text.
    """
    known = ("instruction", "query", "response")
    given = stored.items() if isinstance(stored, Mapping) else [(str(stored), None)]
    wrong = [key for key, tag in given if key not in known or not isinstance(tag, str | None)]
    if wrong:
        raise PromptError(f"instruct_format has {wrong[0]!r}; it holds only the tags {', '.join(known)}, as text.")
    return InstructFormat(**stored)
