"""Filters: counts, samples and scores, against the same rules written out for a made-up run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models import Collection
from drama_models.errors import CollectionError
from training.augment.filter import (
    FilterRecipe,
    Percentiles,
    filter_examples,
    found_by_retriever,
    without_false_negatives,
)
from training.data.examples import TrainingExample, read_examples, write_examples

COUNT = 60


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """Sixty queries of two kinds; a third not found by the retriever, some not first by the teacher, some weak."""
    draw = random.Random(3)
    Collection.write(tmp_path / "passages", ({"_id": f"d{n}", "text": f"text {n}"} for n in range(COUNT)))
    examples, retriever, teacher = [], [], []
    lists: dict[str, list[tuple[str, float]]] = {}
    for number in range(COUNT):
        key, own = f"q{number}", f"d{number}"
        kind = ("question", "title")[number % 2]
        examples.append(TrainingExample(query_id=key, query=f"what is {number}", positive_ids=[own], task=kind))
        others = draw.sample([f"d{n}" for n in range(COUNT) if n != number], 24)
        ranked = [*others[:24], own] if number % 3 == 0 else [*others[:5], own, *others[5:]]
        retriever += [f"{key} Q0 {name} {rank} {100 - rank} r\n" for rank, name in enumerate(ranked)]
        base = draw.uniform(-30, 5) - 10 * (number % 2)
        scored = [(own, base)] + [(name, base - draw.uniform(0.1, 9)) for name in others]
        if number % 7 == 0:
            scored[1] = (scored[1][0], base + 1)
        lists[key] = sorted(scored, key=lambda hit: -hit[1])
        teacher += [f"{key} Q0 {name} 1 {score:.6f} t\n" for name, score in scored]
    write_examples(tmp_path / "examples.jsonl", examples)
    (tmp_path / "retriever.run").write_text("".join(retriever), encoding="utf-8")
    (tmp_path / "teacher.run").write_text("".join(teacher), encoding="utf-8")
    recipe: dict[str, Any] = {
        "collection": tmp_path / "passages", "examples": tmp_path / "examples.jsonl", "out": tmp_path / "out",
        "teacher_run": tmp_path / "teacher.run", "retriever_run": tmp_path / "retriever.run",
    }  # fmt: skip
    return {"recipe": recipe, "lists": lists}


def test_examples_that_pass_are_those_of_the_rules_and_scores_are_normalised(made: dict[str, Any]) -> None:
    figures = filter_examples(FilterRecipe(**made["recipe"]))["figures"]
    first = {key: hits for key, hits in made["lists"].items() if int(key[1:]) % 3 and int(key[1:]) % 7}
    pools = [[score for key, hits in first.items() if int(key[1:]) % 2 == kind for _, score in hits] for kind in (0, 1)]
    bounds = [np.percentile(pool, [1, 25, 99]) for pool in pools]
    expected = {key: hits for key, hits in first.items() if hits[0][1] >= bounds[int(key[1:]) % 2][1]}
    assert 0 < len(expected) < len(first)
    examples = list(read_examples(made["recipe"]["out"] / "examples.jsonl"))
    assert [example.query_id for example in examples] == list(expected)
    assert "category" not in (made["recipe"]["out"] / "examples.jsonl").read_text(encoding="utf-8")
    for example in examples:
        hits, (low, _, high) = expected[example.query_id][:20], bounds[int(example.query_id[1:]) % 2]
        assert example.positive_ids == [hits[0][0]]
        assert example.negative_ids == [name for name, _ in hits[1:]]
        scores = np.clip((np.array([score for _, score in hits]) - low) / (high - low), 0, 1)
        np.testing.assert_allclose(list(example.scores.values()), scores, atol=1e-6)
        assert example.teacher == "teacher.run"
    assert figures["examples"] == len(expected)
    assert figures["found by the retriever"] == {"kept": 40, "dropped": 20}
    assert figures["first of a full list after reranking"] == {"kept": len(first), "dropped": 40 - len(first)}


def test_every_filter_keeps_a_sample_that_can_be_read_and_does_not_change(made: dict[str, Any]) -> None:
    recipe = FilterRecipe(**made["recipe"] | {"top_k": 3, "removed": made["recipe"]["out"].parent / "removed"})
    made["recipe"]["out"].parent.joinpath("removed").write_text("d1\nd2\n", encoding="utf-8")
    with pytest.raises(CollectionError, match=r"No query of .* passed the filters .found by the retriever dropped 60"):
        filter_examples(recipe)
    assert not recipe.out.exists()
    filter_examples(FilterRecipe(**made["recipe"] | {"threshold": 0.6}))
    report = json.loads((made["recipe"]["out"] / "report.json").read_text(encoding="utf-8"))
    for step in report["filters"]:
        assert len(step["sample"]) == min(20, step["dropped"])
    sample = report["filters"][0]["sample"][0]
    assert sample["own_text"] == f"text {sample['own'][1:]}"
    assert sample["instead_text"] == f"text {sample['instead'][1:]}"
    assert sample["query"] == f"what is {sample['query_id'][1:]}"
    for example in read_examples(made["recipe"]["out"] / "examples.jsonl"):
        positive = example.scores[example.positive_ids[0]]
        assert all(example.scores[key] <= 0.6 * positive for key in example.negative_ids)
    before = (made["recipe"]["out"] / "report.json").read_bytes()
    filter_examples(FilterRecipe(**made["recipe"] | {"threshold": 0.6}))
    assert (made["recipe"]["out"] / "report.json").read_bytes() == before


def test_single_rules() -> None:
    assert found_by_retriever("a", ["x", "b", "a"], 2, {"x"}) == ["b", "a"]
    assert found_by_retriever("a", ["x", "b", "a"], 2) is None
    assert found_by_retriever("a", ["a"], 2, {"a"}) is None
    assert without_false_negatives([("a", 1.0), ("b", 0.6), ("c", 0.61)], 0.6) == [("a", 1.0), ("b", 0.6)]
    for hundredths in range(1, 101):
        exactly = [("a", hundredths / 100), ("b", hundredths * 6 / 1000)]
        assert without_false_negatives(exactly, 0.6) == exactly
    assert without_false_negatives([("a", 0.0), ("b", 0.1), ("c", 0.0)], 0.6) == [("a", 0.0), ("c", 0.0)]
    flat = Percentiles.of([2.0, 2.0])
    assert flat.normalised(2.0) == 1.0
    with pytest.raises(ValueError, match=r"try top_k=20, length=20, threshold=0\.6"):
        FilterRecipe(collection=Path(), examples=Path(), teacher_run=Path(), out=Path(), threshold=1.5)


def test_ids_that_are_no_text_are_named_by_their_line(made: dict[str, Any]) -> None:
    ids = made["recipe"]["out"].parent / "ids"
    ids.write_bytes(b"d1\r\ncaf\xe9\n")
    with pytest.raises(CollectionError, match=r"ids, line 2: not text in UTF-8; save the file as such"):
        filter_examples(FilterRecipe(**made["recipe"] | {"removed": ids}))


def test_missing_files_are_named(made: dict[str, Any]) -> None:
    for name, message in [
        ("teacher_run", "There is no run at"),
        ("examples", "There are no training examples at"),
        ("removed", "There is no file of ids at"),
    ]:
        with pytest.raises(CollectionError, match=message):
            filter_examples(FilterRecipe(**made["recipe"] | {name: Path("absent")}))
    assert not made["recipe"]["out"].exists()


def test_scores_are_normalised_between_their_percentiles() -> None:
    pool = np.random.default_rng(0).normal(size=(40, 25))
    found = Percentiles.of(pool.ravel())
    ordered = np.sort(pool.ravel())
    # linear interpolation at 1 % and 99 % of the 999 steps between 1,000 values: 9.99 and 989.01
    assert found.low == pytest.approx(0.01 * ordered[9] + 0.99 * ordered[10])
    assert found.high == pytest.approx(0.99 * ordered[989] + 0.01 * ordered[990])
    scores = (found.low - 1, found.low, (found.low + found.high) / 2, found.high, found.high + 1)
    assert [found.normalised(score) for score in scores] == pytest.approx([0, 0, 0.5, 1, 1])
