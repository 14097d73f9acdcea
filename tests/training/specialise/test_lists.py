"""Lists of several rankers side by side, and the labels that teachers give, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from drama_models.evaluation import read_run, write_run
from training.data.examples import TrainingExample, write_examples
from training.specialise.layout import RunFolder
from training.specialise.lists import lists_of, mean_scores, write_candidates, write_teachers_labels


def test_labels_are_the_mean_of_lists_on_0_to_1() -> None:
    candidates = [("a", 0.3), ("b", 0.2), ("c", 0.1), ("d", 0.05)]
    bm25 = [("c", 12.0), ("a", 9.0), ("x", 8.0), ("b", 2.0)]  # c 1, a 0.7, b 0
    dense = [("b", 0.9), ("a", 0.5), ("y", 0.4)]  # b 1, a 0.2
    assert mean_scores(candidates, [bm25, dense]) == [("b", 0.5), ("c", 0.5), ("a", pytest.approx(0.45)), ("d", 0.0)]
    assert mean_scores(candidates, [bm25, []])[0] == ("c", 1.0)
    assert mean_scores(candidates, [[], []]) == [(key, 0.0) for key, _ in candidates]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three queries; one ranker found nothing for the second."""
    made = RunFolder(tmp_path)
    examples = [TrainingExample(query_id=f"q{n}", query=f"query {n}", positive_ids=["a"]) for n in range(3)]
    write_examples(made.queries, examples)
    write_run(made.run("model"), {f"q{n}": {"a": 0.9, "b": 0.8, "c": 0.7} for n in range(3)})
    write_run(made.run("bm25"), {"q0": {"b": 5.0, "d": 4.0}, "q2": {"d": 1.0}})
    return made


def test_every_query_has_a_list_of_each_run_in_their_order(folder: RunFolder) -> None:
    found = dict(lists_of(folder.queries, [folder.run("model"), folder.run("bm25")]))
    assert list(found) == ["q0", "q1", "q2"]
    assert found["q1"][1] == []
    assert found["q2"] == [[("a", 0.9), ("b", 0.8), ("c", 0.7)], [("d", 1.0)]]


def test_candidates_are_fused_by_rank_and_labels_order_them(folder: RunFolder) -> None:
    runs = [folder.run("model"), folder.run("bm25")]
    assert write_candidates(folder, runs, 3) == {"queries": 3}
    fused = read_run(folder.run("candidates"))
    assert fused["q0"] == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "d": 1 / 62})
    assert list(fused["q2"]) == ["a", "d", "b"]
    write_teachers_labels(folder, runs)
    assert read_run(folder.run("labels"))["q0"] == pytest.approx({"b": 0.75, "a": 0.5, "d": 0.0})
    assert read_run(folder.run("labels"))["q1"] == {"a": 1.0, "b": 0.5, "c": 0.0}
