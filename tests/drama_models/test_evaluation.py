"""Metrics against their definitions written out by hand; run files in and out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from drama_models.errors import CollectionError
from drama_models.evaluation import (
    evaluate,
    evaluate_per_query,
    pool_metrics,
    read_run,
    without_identical_ids,
    write_run,
)

RUN = {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"c": 5.0, "a": 4.0}}
QRELS = {"q1": {"b": 1, "x": 1}, "q2": {"a": 2, "c": 1}, "q3": {"a": 1}}


def test_metrics_match_their_definitions() -> None:
    found = evaluate_per_query(RUN, QRELS)
    ideal_q1 = 1 + 1 / math.log2(3)
    ideal_q2 = 2 + 1 / math.log2(3)
    expected = {
        "ndcg@10": {"q1": (1 / math.log2(3)) / ideal_q1, "q2": (1 + 2 / math.log2(3)) / ideal_q2, "q3": 0.0},
        "recall@100": {"q1": 0.5, "q2": 1.0, "q3": 0.0},
        "mrr@10": {"q1": 0.5, "q2": 1.0, "q3": 0.0},
        "map": {"q1": 0.25, "q2": 1.0, "q3": 0.0},
    }
    for metric, values in expected.items():
        assert found[metric] == pytest.approx(values), metric
    means = evaluate(RUN, QRELS)
    assert means == pytest.approx({metric: sum(values.values()) / 3 for metric, values in expected.items()})


def test_identical_ids_are_dropped_before_ranks_count() -> None:
    run = {"d1": {"d1": 9.0, "d2": 5.0}}
    assert evaluate(run, {"d1": {"d2": 1}}, ["mrr@10"])["mrr@10"] == 0.5
    assert evaluate(run, {"d1": {"d2": 1}}, ["mrr@10"], drop_identical_ids=True)["mrr@10"] == 1.0
    assert without_identical_ids(run) == {"d1": {"d2": 5.0}}


def test_any_measure_of_ir_measures_and_no_other() -> None:
    assert evaluate(RUN, QRELS, ["P@1"])["P@1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"Unknown metric 'goodness'; use one of ndcg@10"):
        evaluate(RUN, QRELS, ["goodness"])
    with pytest.raises(ValueError, match="no judged queries"):
        evaluate(RUN, {})


def test_runs_survive_a_round_trip_in_rank_order(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    write_run(path, RUN, name="system")
    assert path.read_text(encoding="utf-8").splitlines()[:2] == ["q1 Q0 a 1 3 system", "q1 Q0 b 2 2 system"]
    assert read_run(path) == RUN
    assert evaluate(read_run(path), QRELS) == evaluate(RUN, QRELS)


def test_malformed_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 a 1 3.0 system\nq1 Q0 b\n", encoding="utf-8")
    with pytest.raises(CollectionError, match=r"run\.trec, line 2: expected `query Q0 document"):
        read_run(path)
    for second, message in (
        ("b 2 nan", "score of document 'b' is nan; it must be finite"),
        ("a 2 1.0", "'a' occurs twice"),
    ):
        other = tmp_path / "other.trec"
        other.write_text(f"q1 Q0 a 1 3.0 system\nq1 Q0 {second} system\n", encoding="utf-8")
        with pytest.raises(CollectionError, match=rf"other\.trec, line 2: .*{message}"):
            read_run(other)
    with pytest.raises(CollectionError, match="holds white space"):
        write_run(path, {"q 1": {"a": 1.0}})
    assert path.read_text(encoding="utf-8").startswith("q1 Q0 a")  # the old file stands


def test_pool_metrics_count_what_stands_before_the_positive() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]])
    found = pool_metrics(scores, np.array([2, 0]), k=1)
    assert found == {"average_rank": 2.0, "mrr": 0.5, "accuracy_at_k": 0.0}  # rank 2 each, by a tie in the second
    assert pool_metrics(scores, np.array([2, 0]), k=2)["accuracy_at_k"] == 1.0
    with pytest.raises(ValueError, match=r"found \(2, 3\), \(3,\)"):
        pool_metrics(scores, np.array([0, 1, 2]), k=1)
