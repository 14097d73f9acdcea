"""Means, intervals and the page that shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from demo.metrics import scores
from demo.report import _rows, table_rows, verdict
from drama_models.evaluation import evaluate


def judged(found: list[int | None]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """A run and qrels in which the one answer of question i is at rank `found[i]`, or nowhere."""
    run, qrels = {}, {}
    for number, rank in enumerate(found):
        ids = [f"other{place}" for place in range(100)]
        if rank is not None:
            ids[rank - 1] = "answer"
        run[f"q{number}"] = {name: 1.0 - place / 100 for place, name in enumerate(ids)}
        qrels[f"q{number}"] = {"answer": 1}
    return run, qrels


def test_scores_are_the_closed_forms() -> None:
    run, qrels = judged([1, 3, 11, None])
    found = scores(run, qrels)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert found["recall@100"] == pytest.approx(3 / 4)
    assert found["ndcg@10"] == pytest.approx(evaluate(run, qrels)["ndcg@10"])


def test_interval_is_close_to_the_normal_one_for_many_questions() -> None:
    generator = np.random.default_rng(0)
    run, qrels = judged([1 if hit else None for hit in generator.random(400) < 0.3])
    found = scores(run, qrels)
    mean = found["recall@100"]
    half = 1.96 * np.sqrt(mean * (1 - mean) / 400)  # of a mean of independent yes-or-no answers
    low, high = found["interval"]["recall@100"]
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)
    assert scores(run, qrels) == found  # the resampling has a fixed seed


def metrics_with(pruned: float, random: float) -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        return dict.fromkeys(("ndcg@10", "recall@100"), value) | {
            "interval": {name: [value - 0.01, value + 0.01] for name in ("ndcg@10", "recall@100")}
        }

    return {
        "bm25": entry(0.3),
        "untrained": entry(0.05),
        "random_start": entry(random),
        "pruned_start": entry(pruned),
        "dims": {"32": entry(pruned - 0.02)},
    }


def test_the_verdict_says_plainly_who_won() -> None:
    assert verdict(metrics_with(0.2, 0.1)).startswith("The pruned start beats random initialisation")
    for random in (0.2, 0.3):
        assert "did NOT beat" in verdict(metrics_with(0.2, random))


@pytest.mark.parametrize(
    ("bm25", "said"), [(0.3, "BM25 finds more still: 0.300."), (0.1, "BM25 finds no more: 0.100.")]
)
def test_the_verdict_names_bm25(bm25: float, said: str) -> None:
    metrics = metrics_with(0.2, 0.1)
    metrics["bm25"]["recall@100"] = bm25
    assert verdict(metrics).endswith(said)


def test_the_table_shows_every_system_with_its_interval() -> None:
    rows = table_rows(metrics_with(0.2, 0.1))
    assert rows[0][0] == "BM25"
    assert len(rows) == 5
    assert rows[3][2] == "0.200 [0.190, 0.210]"
    assert rows[4][0] == "the same, first 32 dimensions"


def test_text_in_the_page_is_escaped() -> None:
    assert "<script>" not in _rows(("a",), [("<script>alert(1)</script>",)])
