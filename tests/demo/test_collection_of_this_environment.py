"""The demo's collection as it is here: names that import, texts that Python sees, questions with answers."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import TYPE_CHECKING

import numpy as np

from demo.collect import TEST_PACKAGES, package_of, read_questions
from demo.environment import PACKAGES, STANDARD_LIBRARY
from drama_models.bm25 import BM25
from drama_models.collection import Collection
from drama_models.evaluation import evaluate
from tests.demo.test_public_names import imported

if TYPE_CHECKING:
    from tests.demo.conftest import Collected

REPEATED_WORDS = 6  # in a row: a question is not to be lifted from the text that answers it


def test_every_package_is_there(environment: Collected) -> None:
    assert set(environment.counts["documents"]) == {*PACKAGES, STANDARD_LIBRARY}
    assert environment.counts["documents"]["numpy"] > 1000
    assert sum(environment.counts["documents"].values()) > 20_000


def test_compiled_functions_have_the_docstrings_that_python_sees(environment: Collected) -> None:
    texts = {document.id: document.text for document in Collection(environment.folder).documents()}
    for name in ("numpy.array", "numpy.ndarray.sort", "torch.cumsum", "torch.linalg.det", "scipy.special.erfinv"):
        seen = inspect.getdoc(imported(name)) or ""
        # the start only: templates shared by many functions of torch are filled in when it is imported
        assert texts[name].split()[:25] == seen.split()[:25], name


def test_a_sample_of_all_names_can_be_imported(environment: Collected) -> None:
    # transformers resolves names lazily with heavy imports, sympy and the standard library hold GUI modules
    names = [row.id for row in Collection(environment.folder).documents() if row.id.startswith(("numpy.", "pandas."))]
    sample = np.random.default_rng(0).choice(names, 200, replace=False)
    missing = []
    for name in sample:
        try:
            imported(name)
        except (ImportError, AttributeError):
            missing.append(str(name))
    assert len(missing) <= 10, missing


def test_every_question_has_its_answers_in_the_pinned_environment(environment: Collected) -> None:
    assert environment.counts["skipped_questions"] == {}
    assert environment.counts["questions"]["test"] >= 200
    assert environment.counts["questions"]["dev"] >= 200
    documents = {document.id for document in Collection(environment.folder).documents()}
    for split in ("dev", "test"):
        for judged in Collection(environment.folder).qrels(split).values():
            assert set(judged) <= documents


def test_splits_share_no_question_and_no_package() -> None:
    dev, test = read_questions("dev"), read_questions("test")
    assert not {row["_id"] for row in dev} & {row["_id"] for row in test}
    texts = [row["text"].lower() for row in dev + test]
    assert len(set(texts)) == len(texts)
    # an answer elsewhere counts as well: scipy has a disjoint set too
    assert all({package_of(answer) for answer in row["answers"]} & set(TEST_PACKAGES) for row in test)
    assert all({package_of(answer) for answer in row["answers"]} - set(TEST_PACKAGES) for row in dev)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_questions_are_not_lifted_from_the_texts_that_answer_them(environment: Collected) -> None:
    collection = Collection(environment.folder)
    texts = {document.id: document.text for document in collection.documents()}
    queries, lifted = collection.queries(), []
    for split, (key, judged) in itertools.chain.from_iterable(
        ((split, item) for item in collection.qrels(split).items()) for split in ("dev", "test")
    ):
        question = words(queries[key])
        runs = {tuple(question[start : start + REPEATED_WORDS]) for start in range(len(question) - REPEATED_WORDS + 1)}
        for answer in judged:
            body = words(texts[answer])
            repeated = runs & {tuple(body[start : start + REPEATED_WORDS]) for start in range(len(body))}
            lifted += [(split, key, answer, run) for run in repeated]
    assert not lifted


def test_word_overlap_alone_does_not_answer_the_questions(environment: Collected) -> None:
    collection = Collection(environment.folder)
    qrels, queries = collection.qrels("test"), collection.queries()
    bm25 = BM25((document.id, document.content) for document in collection.documents())
    found = bm25.search([queries[key] for key in qrels], 100)
    run = {key: dict(hits) for key, hits in zip(qrels, found, strict=True)}
    assert 0.15 < evaluate(run, qrels)["recall@100"] < 0.6
