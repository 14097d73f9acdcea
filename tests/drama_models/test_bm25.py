"""BM25 against its formula written out by hand; tokens of several scripts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from drama_models import BM25
from drama_models.errors import CollectionError, IndexFolderError, TextError
from tests.conftest import TEXTS

DOCUMENTS = {
    "a": "the cat sat on the mat",
    "b": "a cat and a dog and another cat",
    "c": "graphs have nodes and edges",
    "d": "dogs run",
}


def formula(query: list[str], documents: dict[str, list[str]], k1: float = 0.9, b: float = 0.4) -> dict[str, float]:
    """Lucene's BM25 (Kamphuis et al., 2020): idf ln(1 + (N - n + 0.5) / (n + 0.5))."""
    mean = sum(map(len, documents.values())) / len(documents)
    scores = {}
    for key, terms in documents.items():
        counts, score = Counter(terms), 0.0
        for term in query:
            containing = sum(term in other for other in documents.values())
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            score += idf * counts[term] / (counts[term] + k1 * (1 - b + b * len(terms) / mean))
        scores[key] = score
    return scores


@pytest.mark.parametrize("query", ["cat", "dog", "cat dog", "running dogs", "nodes of a graph"])
def test_scores_match_the_formula(query: str) -> None:
    bm25 = BM25(DOCUMENTS.items())
    expected = formula(bm25.tokens(query), {key: bm25.tokens(text) for key, text in DOCUMENTS.items()})
    ranked = sorted((key for key in expected if expected[key] > 0), key=lambda key: -expected[key])
    hits = bm25.search([query], k=10)[0]
    assert [key for key, _ in hits] == ranked
    assert dict(hits) == pytest.approx({key: expected[key] for key in ranked}, rel=1e-5)


def test_english_is_stemmed_and_loses_stop_words() -> None:
    assert BM25(DOCUMENTS.items()).tokens("The dogs are RUNNING to a graph") == ["dog", "run", "graph"]


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("de", "Die Häuser am See", ["die", "häuser", "am", "see"]),
        ("hi", "हिन्दी भाषा में", ["हिन्दी", "भाषा", "में"]),
        ("ta", "தமிழ் மொழி, 2", ["தமிழ்", "மொழி", "2"]),
        ("zh", "合并数据框 pandas 2", ["合并", "并数", "数据", "据框", "pandas", "2"]),
        ("ja", "文字列。日", ["文字", "字列", "日"]),
        ("th", "ที่นี่", ["ที", "ี่", "่น", "นี", "ี่"]),
    ],
)
def test_tokens_by_language(language: str, text: str, tokens: list[str]) -> None:
    assert BM25([("x", "y")], language).tokens(text) == tokens


def test_no_match_and_ties() -> None:
    bm25 = BM25([("first", "same text"), ("second", "same text"), ("third", "other")])
    assert bm25.search(["absent words", ""], k=5) == [[], []]
    assert [key for key, _ in bm25.search(["same"], k=5)[0]] == ["first", "second"]
    assert len(bm25.search(["same"], k=1)[0]) == 1


def test_one_text_is_one_query_and_nothing_to_search_is_said() -> None:
    bm25 = BM25([("first", "join two tables"), ("second", "sort a list")])
    assert bm25.search("join tables") == bm25.search(["join tables"])
    with pytest.raises(CollectionError, match="The 2 documents hold no word"):
        BM25([("stopped", "the of"), ("empty", "")])
    with pytest.raises(CollectionError, match="no documents for BM25"):
        BM25([])
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"k={wrong} must be a whole number"):
            bm25.search("join", k=wrong)  # type: ignore[arg-type]
    with pytest.raises(TextError, match="Text number 1 is int"):
        bm25.search(["join", 3])  # type: ignore[list-item]


def test_of_many_documents_the_best_are_those_of_a_full_sort_with_ties_in_order() -> None:
    words = ["tide", "salt", "reef", "wave", "sea"]
    documents = {f"d{number}": " ".join(words[: number % 4] + ["sea"] * (number % 7)) for number in range(3000)}
    bm25 = BM25(documents.items())
    (everything,) = bm25.search(["tide salt wave"], k=len(documents))
    places = {key: place for place, key in enumerate(documents)}
    assert everything == sorted(everything, key=lambda hit: (-hit[1], places[hit[0]]))
    assert len(everything) < len(documents)
    for k in (1, 5, 40, 100, 1000):
        assert bm25.search(["tide salt wave"], k=k)[0] == everything[:k]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_saved_and_opened_it_answers_the_same(tmp_path: Path, language: str) -> None:
    documents = [*((f"d{number}", text) for number, text in enumerate(TEXTS)), ("ja", "経路を探す")]
    made = BM25(documents, language)
    made.save(tmp_path / "bm25")
    again = BM25.load(tmp_path / "bm25")
    queries = ["digest of the bytes in a file", "経路", "unheard"]
    assert again.search(queries) == made.search(queries)
    assert again.search(queries)[0]
    assert (again.language, again.ids.tolist()) == (language, made.ids.tolist())
    for path in sorted((tmp_path / "bm25").iterdir()):
        data = path.read_bytes()
        if path.name == "bm25.json":
            continue
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IndexFolderError, match=f"{path.name} is not the file that was written"):
            BM25.load(tmp_path / "bm25")
        path.write_bytes(data)
    with pytest.raises(IndexFolderError, match="holds no BM25; make it with"):
        BM25.load(tmp_path)


def test_what_was_kept_when_words_were_cut_in_another_way_is_refused(tmp_path: Path) -> None:
    BM25([("first", "हिन्दी भाषा")], "hi").save(tmp_path / "bm25")
    manifest = json.loads((tmp_path / "bm25" / "bm25.json").read_text(encoding="utf-8"))
    for language, refused in (("hi", True), ("en", False)):  # the cut of English is as it was
        changed = manifest | {"format": 1, "language": language}
        (tmp_path / "bm25" / "bm25.json").write_text(json.dumps(changed), encoding="utf-8")
        if refused:
            with pytest.raises(IndexFolderError, match="cut words in another way; make it anew"):
                BM25.load(tmp_path / "bm25")
        else:
            assert BM25.load(tmp_path / "bm25").language == "en"
