"""The new model is recommended for a gain beyond chance, on the user's queries where there are any; else the old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.specialise.test_findings import findings
from training.specialise.findings import Change, Evaluation, RankerQuality
from training.specialise.verdict import judge, summary, unanswered, warn


def evaluation(difference: float, p: float, *, yours: bool = False, queries: int = 400) -> Evaluation:
    change = Change(
        metric="ndcg@10", before=0.5, after=0.5 + difference, low=difference - 0.02, high=difference + 0.02, p=p
    )
    name = "your queries" if yours else "held-out queries"
    return replace(findings().evaluations[0], name=name, queries=queries, changes=[change])  # type: ignore[arg-type]


GAIN, LOSS, CHANCE = (0.05, 0.001), (-0.05, 0.001), (0.03, 0.2)


@pytest.mark.parametrize(
    ("held_out", "yours", "expected"),
    [
        (GAIN, None, "new"), (CHANCE, None, "old"), (LOSS, None, "old"), ((0.0, 1.0), None, "old"),
        ((0.01, 0.0499), None, "new"), ((0.01, 0.05), None, "old"),
        (LOSS, GAIN, "new"), (GAIN, LOSS, "old"), (GAIN, CHANCE, "old"),
    ],
)  # fmt: skip
def test_the_deciding_queries_are_the_users(
    held_out: tuple[float, float], yours: tuple[float, float] | None, expected: str
) -> None:
    evaluations = [evaluation(*held_out)] + ([evaluation(*yours, yours=True)] if yours else [])
    recommended, reason = judge(evaluations)
    assert recommended == expected
    assert reason.startswith("Use the new" if expected == "new" else "Keep the old")
    assert ("your queries" in reason) == (yours is not None)


def test_what_is_not_significant_or_worse_is_warned_of() -> None:
    assert warn([evaluation(*GAIN)], [], examples=1000) == []
    (chance,) = warn([evaluation(*CHANCE)], [], examples=1000)
    assert chance.startswith("The change is not significant: nDCG@10 on 400 held-out queries went from 0.500 to 0.530")
    assert "p = 0.20" in chance
    still = evaluation(0.0, 1.0)
    still = replace(still, changes=[replace(still.changes[0], low=0.0, high=0.0)])
    (same,) = warn([still], [], examples=1000)
    assert same.startswith("Nothing changed on 400 held-out queries")
    (worse,) = warn([evaluation(*LOSS)], [], examples=1000)
    assert worse.startswith("Training made the retriever worse")
    assert "p = 0.001" in worse


def test_little_data_and_weak_teachers_are_warned_of() -> None:
    few = warn([evaluation(*GAIN, queries=9), evaluation(*GAIN, yours=True, queries=7)], [], examples=30)
    assert [each.split(";")[0] for each in few] == [
        "There are only 9 held-out queries", "Only 7 of your queries are judged", "Only 30 queries passed the filters",
    ]  # fmt: skip
    rankers = [
        RankerQuality(name="model", role="model", queries=50, ndcg_at_10=0.61),
        RankerQuality(name="labels", role="labels", queries=50, ndcg_at_10=0.605),
    ]
    (weak,) = warn([evaluation(*GAIN)], rankers, examples=1000)
    assert "no better (0.605) than the model itself (0.610)" in weak


def test_what_a_large_model_did_not_answer_is_warned_of() -> None:
    lists = {"queries": 51, "unanswered": 21}
    assert unanswered({}) == unanswered({"answers": 90, "failed": 0, "reranking": lists | {"unanswered": 0}}) == []
    (both,) = unanswered({"answers": 52, "failed": 38, "reranking": lists})
    assert both.startswith(
        "The large model did not answer 38 of 90 requests for queries and 21 of 51 requests to order"
    )
    (one,) = unanswered({"answers": 90, "failed": 0, "reranking": lists})
    assert one.startswith("The large model did not answer 21 of 51 requests to order a list, which are not trained on")


def test_the_last_lines_name_the_recommended_folder_and_the_release() -> None:
    lines = summary(findings(), Path("out")).splitlines()
    assert lines[0] == "warning: The change is not significant."
    assert lines[1].startswith(
        "ndcg@10 on 2 held-out queries: 0.5000 → 0.6250 (+0.1250, 95% interval -0.0100 to +0.2600"
    )
    assert lines[-2] == f"recommended: m; both are kept, the report is {Path('out') / 'report.html'}"
    assert lines[-1] == "to use the new one all the same: python -m export release --retriever m --out RELEASE"
    new = replace(findings(), recommended="new", recommended_folder="r")
    assert summary(new, Path("out")).splitlines()[-2:] == [
        f"recommended: r; both are kept, the report is {Path('out') / 'report.html'}",
        "next: python -m export release --retriever m --out RELEASE",
    ]


def test_a_gain_that_loses_recall_is_none() -> None:
    better = evaluation(*GAIN)
    recall = replace(better.changes[0], metric="recall@100", before=0.9, after=0.85, low=-0.08, high=-0.02)
    lossy = replace(better, changes=[*better.changes, recall])
    recommended, reason = judge([lossy])
    assert recommended == "old"
    assert "(+0.050, 95% interval" in reason
    assert "but Recall@100 on 400 held-out queries went from 0.900 to 0.850 (-0.050" in reason
    (lost,) = warn([lossy], [], examples=1000)
    assert lost.startswith("Less of what is relevant is found: Recall@100 on 400 held-out")
    by_chance = replace(lossy, changes=[*better.changes, replace(recall, p=0.2)])
    assert judge([by_chance])[0] == "new"
    assert warn([by_chance], [], examples=1000) == []
