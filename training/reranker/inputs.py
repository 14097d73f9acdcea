"""From a query and a passage to the reranker's tokens: `A: query`, `B: passage` and the question put to the model.

BOS, query, line break, passage, line break, prompt; no EOS, since the score is read at the last token of the prompt.
The query and then the passage are cut, the prompt never. Which weights are right depends on the wording of the prompt.

Li et al., 2024, "Making Text Embedders Few-Shot Learners", https://arxiv.org/abs/2409.15700, appendix on the reranker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

QUERY_TAG, PASSAGE_TAG, SEPARATOR = "A: ", "B: ", "\n"
ANSWERS = "Predict whether passage B contains an answer to query A."
SAME_MEANING = "Predict whether passages A and B have the same meaning."
PAD_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class PairInput:
    """The tokens of one pair, and where its passage lies among them."""

    ids: list[int]
    """BOS, query, separator, passage, separator, prompt."""
    query_length: int
    """Tokens before the passage: BOS, query and separator."""
    prompt_length: int
    """Tokens behind the passage: separator and prompt."""

    @property
    def padded_length(self) -> int:
        """Length of the row, padded alone."""
        return -(-len(self.ids) // PAD_MULTIPLE) * PAD_MULTIPLE


def pair_inputs(
    pairs: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    bos: str,
    prompt: str = ANSWERS,
    max_length: int = 1024,
    query_max_length: int | None = None,
) -> list[PairInput]:
    """Tokens of pairs of texts.

    Args:
        pairs: query and passage of each.
        tokenizer: must not truncate.
        bos: its token for the beginning of a text.
        prompt: the question to the model.
        max_length: tokens of BOS, query and passage, as far as they are counted without separators and prompt.
        query_max_length: tokens of the query with its tag; three quarters of `max_length` by default.

    Raises:
        ModelFolderError: the tokenizer does not know `bos`.
    """
    first = tokenizer.token_to_id(bos)
    if first is None:
        raise ModelFolderError(f"The tokenizer has no {bos!r}; use that of the reranker's own folder.")
    query_limit = max_length * 3 // 4 if query_max_length is None else query_max_length
    separator, question = _ids([SEPARATOR, prompt], tokenizer)
    queries = _ids([QUERY_TAG + query for query, _ in pairs], tokenizer)
    passages = _ids([PASSAGE_TAG + passage for _, passage in pairs], tokenizer)
    whole = max_length + len(separator) + len(question)
    rows = []
    for query, passage in zip(queries, passages, strict=True):
        before = [first, *query[:query_limit], *separator]
        kept = passage[: max(min(max_length, whole - len(before)), 0)]
        ids = [*before, *kept, *separator, *question]
        rows.append(PairInput(ids=ids, query_length=len(before), prompt_length=len(separator) + len(question)))
    return rows


def _ids(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
