"""BM25 through the bm25s package: the baseline of every report, and the teacher that gives hard negatives."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

GROUP_SIZE = 64
WORD = re.compile(r"\w+")
# Lucene's English stop words, those of Anserini's BM25 baselines.
STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
}  # fmt: skip
UNSPACED_LANGUAGES = ("zh", "ja", "th")
RUN = re.compile(r"[A-Za-z0-9]+|[^\s\x00-\x7f]+")  # of Latin letters and digits, or of anything outside ASCII


class BM25:
    """Lucene's BM25 over a fixed set of documents (k1 0.9, b 0.4, as Anserini and BEIR report it).

    Args:
        documents: id and content of every document.
        language: two-letter code; English is stemmed and loses stop words, Chinese, Japanese and Thai are cut into
            pairs of characters, other languages into lower-case words.

    Raises:
        MissingExtraError: bm25s or PyStemmer is not installed.
    """

    def __init__(self, documents: Iterable[tuple[str, str]], language: str = "en") -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError:
            raise MissingExtraError("BM25", "evaluate") from None
        pairs = list(documents)
        self.ids = np.array([key for key, _ in pairs], dtype=object)
        self._language = language
        self._stem = Stemmer.Stemmer("english") if language == "en" else None
        self._retriever = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        corpus = [self.tokens(content) for _, content in pairs]
        self._known = {token for tokens in corpus for token in tokens}
        self._retriever.index(corpus, show_progress=False)

    def tokens(self, text: str) -> list[str]:
        """The terms of a text, in order."""
        lowered = text.lower()
        if self._language in UNSPACED_LANGUAGES:
            # letters, vowel signs and digits; `\w` would split Thai at every vowel sign
            kept = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in lowered)
            return [term for run in RUN.findall(kept) for term in _pairs(run)]
        words = WORD.findall(lowered)
        if self._stem is None:
            return words
        stemmed: list[str] = self._stem.stemWords([word for word in words if word not in STOP_WORDS])
        return stemmed

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[tuple[str, float]]]:
        """Best documents of each query with their scores, best first; only documents with a score above zero."""
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[tuple[str, float]]:
        terms = [term for term in self.tokens(query) if term in self._known]
        if not terms:
            return []
        scores: Any = self._retriever.get_scores(terms)
        best = _best_rows(scores, k)
        return [(str(self.ids[row]), float(scores[row])) for row in best]


def _best_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Rows of the k highest scores above zero, best first; ties go to the earlier row.

    The scores are dealt to groups. Where k groups reach a value, the k best are no lower: only what reaches it too,
    a few hundred of millions, need be sorted.
    """
    groups = len(scores) // GROUP_SIZE
    least = np.finfo(np.float32).tiny
    if 0 < k < groups:
        highest = scores[: groups * GROUP_SIZE].reshape(GROUP_SIZE, groups).max(axis=0)
        least = max(least, np.partition(highest, -k)[-k])
    rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def _pairs(run: str) -> list[str]:
    """Latin words and numbers whole, other scripts as overlapping pairs of characters."""
    if run.isascii() or len(run) == 1:
        return [run]
    return [run[start : start + 2] for start in range(len(run) - 1)]
