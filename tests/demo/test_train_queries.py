"""Training examples come from documents alone, and never from the packages that are tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.collect import TEST_PACKAGES, package_of
from demo.train_queries import queries_of, write_training_data
from drama_models.collection import Collection, Document
from training.data.examples import read_examples

if TYPE_CHECKING:
    from pathlib import Path

    from tests.demo.conftest import Collected

TEXT = """Join a sequence of arrays along a new axis.

The axis parameter gives the place of the new axis. It may be negative, counted from the end.

Parameters
----------
arrays : sequence

Memory and speed
----------------
Every array is copied once into the result, whatever its own memory layout was before.
"""


def test_a_document_gives_its_summary_its_sentences_and_its_sections() -> None:
    found = set(queries_of(Document("numpy.stack", "numpy.stack", TEXT)))
    assert found == {
        ("summary", "Join a sequence of arrays along a new axis"),
        ("sentence", "The axis parameter gives the place of the new axis."),
        ("sentence", "It may be negative, counted from the end."),
        ("section", "Memory and speed"),
    }


def test_a_document_of_one_line_gives_nothing() -> None:
    assert list(queries_of(Document("numpy.e", "numpy.e", "Euler's constant, base of natural logarithms."))) == []


def test_examples_leave_the_test_packages_out(environment: Collected, tmp_path: Path) -> None:
    counts = write_training_data(environment.folder, tmp_path, count=400, seed=1)
    examples = list(read_examples(tmp_path / "examples.jsonl"))
    documents = {document.id: document for document in Collection(tmp_path / "collection").documents()}
    assert counts["examples"] == len(examples) == 400
    assert not {package_of(name) for name in documents} & set(TEST_PACKAGES)
    for example in examples:
        (positive,) = example.positive_ids
        assert positive not in example.negative_ids
        assert {positive, *example.negative_ids} <= documents.keys()
        assert example.query.rstrip(".") in " ".join(documents[positive].text.split())
    assert sum(len(example.negative_ids) > 0 for example in examples) > 0.9 * len(examples)


def test_the_draw_follows_the_seed(environment: Collected, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        write_training_data(environment.folder, tmp_path / name, count=50, seed=seed)
        files.append((tmp_path / name / "examples.jsonl").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]
