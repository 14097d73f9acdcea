"""Cutting text into sentences, offline and in about 300 languages, with the sentencex package.

DRAGON cut its queries with the rules of Moses (the sentence-splitter package), which differ in small things: a
sentence never starts with a small letter there. `rules="moses"` reproduces them where Moses has the language, about a
hundred times slower.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Literal

from sentence_splitter import SentenceSplitter, SentenceSplitterException
from sentencex import segment

if TYPE_CHECKING:
    from collections.abc import Callable

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
SentenceRules = Literal["sentencex", "moses"]


def split_sentences(text: str, language: str = "en", rules: SentenceRules = "sentencex") -> list[str]:
    """Sentences of a text in order; none is empty. White space inside them is collapsed, by Moses' rules as Moses does.

    Args:
        text: any text.
        language: two-letter code; an unknown one is split by general rules.
        rules: whose; see above.
    """
    splitter = _moses(language) if rules == "moses" else None
    if splitter is not None:
        return [piece for piece in splitter(text) if piece.strip()]
    return [" ".join(piece.split()) for piece in segment(language, text) if piece.strip()]


@cache
def _moses(language: str) -> Callable[[str], list[str]] | None:
    """The splitter of a language, None where Moses has no rules for it."""
    try:
        split: Callable[[str], list[str]] = SentenceSplitter(language).split
    except SentenceSplitterException:
        return None
    return split


def word_count(text: str) -> int:
    """Words of a text; in scripts without spaces (Chinese, Japanese, Thai, Khmer, ...) two characters count as one."""
    unspaced = len(UNSPACED.findall(text))
    return len(UNSPACED.sub(" ", text).split()) + (unspaced + 1) // 2
