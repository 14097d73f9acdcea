"""The toy tokenizer of the in-context and reranker fixtures: tags, single white space, and runs of anything else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from collections.abc import Iterable

PATTERN = r"<[a-z/]+>|\s|[^\s<]+|<"
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"


def toy_tokenizer(texts: Iterable[str], *, eos: bool = True) -> Tokenizer:
    """A tokenizer that knows every token of these texts, in the order in which they are first met.

    Args:
        texts: whatever is to be tokenised, in whole or in part.
        eos: whether a text also gets `</s>`; `<s>` is always put in front.
    """
    tokens = dict.fromkeys([UNKNOWN, BOS, EOS, *(token for text in texts for token in re.findall(PATTERN, text))])
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    ends = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    template = [BOS, "$A", EOS] if eos else [BOS, "$A"]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ends)
    return tokenizer


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Tokens put together with nothing between them."""
    return "".join(str(tokenizer.id_to_token(number)) for number in ids)
