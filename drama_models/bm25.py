"""BM25 through the bm25s package: the baseline of every report, and the teacher that gives hard negatives.

Saved, it is a folder of bm25s' own arrays and JSON, memory-mapped when it is opened, with the ids, the language and the
SHA-256 of every file in `bm25.json`; no pickle. An index folder may hold one as `bm25`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.arguments import checked_hits, checked_texts
from drama_models.arrays import check_arrays
from drama_models.errors import CollectionError, IndexFolderError, MissingExtraError
from drama_models.folders import atomic_folder, sha256_of_file
from drama_models.tokenisation import checked_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

FOLDER, MANIFEST, IDS = "bm25", "bm25.json", "ids.json"
FORMAT = 2  # in 1, words of languages without a stemmer ended at vowel signs
GROUP_SIZE = 64
WORD = re.compile(r"\w+")
# Lucene's English stop words, those of Anserini's BM25 baselines.
STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
}  # fmt: skip
LAST_SCRIPT = 0x20000  # code points of scripts end here, what follows are Chinese characters and tags
UNSPACED_LANGUAGES = ("zh", "ja", "th")
RUN = re.compile(r"[A-Za-z0-9]+|[^\s\x00-\x7f]+")  # of Latin letters and digits, or of anything outside ASCII


class BM25:
    """Lucene's BM25 over a fixed set of documents (k1 0.9, b 0.4, as Anserini and BEIR report it).

    Args:
        documents: id and content of every document.
        language: two-letter code; English is stemmed and loses stop words, Chinese, Japanese and Thai are cut into
            pairs of characters, other languages into lower-case words with their vowel signs.

    Raises:
        CollectionError: there are no documents, or no words in them.
        MissingExtraError: bm25s or PyStemmer is not installed.
    """

    def __init__(self, documents: Iterable[tuple[str, str]], language: str = "en") -> None:
        pairs = list(documents)
        if not pairs:
            raise CollectionError("There are no documents for BM25 to read; pass one at least.")
        self._set_up(np.array([key for key, _ in pairs], dtype=object), language)
        self._retriever = _bm25s().BM25(method="lucene", k1=0.9, b=0.4)
        corpus = [self.tokens(content) for _, content in pairs]
        self._known = {token for tokens in corpus for token in tokens}
        if not self._known:
            raise CollectionError(f"The {len(pairs):,} documents hold no word that BM25 could find; pass others.")
        self._retriever.index(corpus, show_progress=False)

    def save(self, folder: str | Path) -> None:
        """Write it to a folder, complete or not at all."""
        with atomic_folder(folder) as partial:
            self._retriever.save(partial, corpus=None, show_progress=False, allow_pickle=False)
            check_arrays(partial)
            (partial / IDS).write_text(json.dumps(self.ids.tolist(), ensure_ascii=False), encoding="utf-8")
            hashes = {path.name: sha256_of_file(path) for path in sorted(partial.iterdir())}
            manifest = {"format": FORMAT, "language": self.language, "sha256": hashes}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> BM25:
        """Open what `save` wrote; its scores stay on disk, memory-mapped.

        Raises:
            IndexFolderError: nothing there, or a file that is not the one that was written.
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            language, hashes = str(manifest["language"]), dict(manifest["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            raise IndexFolderError(f"{folder} holds no BM25; make it with `drama index ... --bm25`.") from None
        if manifest.get("format") != FORMAT and language not in ("en", *UNSPACED_LANGUAGES):
            raise IndexFolderError(
                f"{folder} was kept by a version that cut words in another way; make it anew with `drama index`."
            )
        for name, expected in hashes.items():
            path = folder / Path(name).name
            if not path.is_file() or sha256_of_file(path) != expected:
                raise IndexFolderError(f"{path} is not the file that was written; make it anew with `drama index`.")
        if IDS not in hashes:
            raise IndexFolderError(f"{folder / MANIFEST} names no {IDS}; make it anew with `drama index`.")
        loaded = cls.__new__(cls)
        loaded._set_up(np.array(json.loads((folder / IDS).read_text(encoding="utf-8")), dtype=object), language)
        loaded._retriever = _bm25s().BM25.load(folder, mmap=True, allow_pickle=False, load_corpus=False)
        loaded._known = set(loaded._retriever.vocab_dict)
        return loaded

    def tokens(self, text: str) -> list[str]:
        """The terms of a text, in order."""
        lowered = text.lower()
        if self.language in UNSPACED_LANGUAGES:
            # letters, vowel signs and digits; `\w` would split Thai at every vowel sign
            kept = "".join(sign if unicodedata.category(sign)[0] in "LMN" else " " for sign in lowered)
            return [term for run in RUN.findall(kept) for term in _pairs(run)]
        if self._stem is None:
            return _word_with_signs().findall(lowered)
        words = WORD.findall(lowered)
        stemmed: list[str] = self._stem.stemWords([word for word in words if word not in STOP_WORDS])
        return stemmed

    def search(self, queries: str | Iterable[str], k: int = 10) -> list[list[tuple[str, float]]]:
        """Best documents of each query with their scores, best first; only documents with a score above zero.

        Args:
            queries: one text, a list, or any iterable; a single text gives a list of one ranking.
            k: documents of each.

        Raises:
            TextError: something that is not text.
            ValueError: `k` is no whole number of at least 1.
        """
        most = checked_hits(k)
        asked = [checked_text(query, position) for position, query in enumerate(checked_texts(queries))]
        return [self._search_one(query, most) for query in asked]

    def _set_up(self, ids: NDArray[np.object_], language: str) -> None:
        self.ids, self.language = ids, language
        _bm25s()  # says what is missing before anything is read
        import Stemmer

        self._stem = Stemmer.Stemmer("english") if language == "en" else None

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


@cache
def _word_with_signs() -> re.Pattern[str]:
    """A word of any script; by itself `re` ends one at every vowel sign, as Hindi, Tamil or Khmer write them."""
    signs = "".join(sign for sign in map(chr, range(LAST_SCRIPT)) if unicodedata.category(sign)[0] == "M")
    return re.compile(rf"[\w{re.escape(signs)}]+")


def _pairs(run: str) -> list[str]:
    """Latin words and numbers whole, other scripts as overlapping pairs of characters."""
    if run.isascii() or len(run) == 1:
        return [run]
    return [run[start : start + 2] for start in range(len(run) - 1)]


def _bm25s() -> Any:
    try:
        import bm25s
        import Stemmer  # noqa: F401
    except ImportError:
        raise MissingExtraError("BM25", "evaluate") from None
    return bm25s
