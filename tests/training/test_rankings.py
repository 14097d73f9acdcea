"""Teachers' runs from disk against `read_run` and plain dictionaries; fused lists against sums written out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drama_models.collection import Collection
from drama_models.errors import CollectionError
from drama_models.evaluation import read_run
from tests.training.data import QUERIES, corpus_store, open_one, write_collection, write_random_run
from training.data import score_fusion, shards
from training.data.documents import TextStore
from training.data.rankings import Rankings, open_run
from training.data.sampling import BatchPlan
from training.data.score_fusion import fuse
from training.data.supervision import RankWindows, Supervision, Teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("rankings") / "c")


def stores(folder: Path) -> tuple[TextStore, TextStore]:
    return TextStore(Collection(folder).queries_file, folder / "cache"), corpus_store(folder, folder / "cache")


def opened(folder: Path, text: str) -> Rankings:
    (folder / "x.run").write_text(text, encoding="utf-8")
    return open_run(folder / "x.run", *stores(folder), folder / "cache")


@pytest.mark.parametrize("block", [17, 1 << 15])
def test_lists_are_those_of_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(shards, "BLOCK_LINES", block)
    queries, documents = stores(folder)
    write_random_run(tmp_path / "a.run", seed=1, queries=QUERIES - 5)
    wanted = read_run(tmp_path / "a.run")
    rankings = open_run(tmp_path / "a.run", queries, documents, tmp_path / "cache")
    rows = queries.rows(list(wanted))
    found, scores = rankings.ranked(rows)
    assert len(rankings) == len(wanted)
    assert [documents.ids(ranked) for ranked in found] == [list(ranked) for ranked in wanted.values()]
    np.testing.assert_allclose(np.stack(scores), [list(ranked.values()) for ranked in wanted.values()], rtol=1e-6)
    assert rankings.covers(np.arange(QUERIES)).sum() == QUERIES - 5
    window, _ = rankings.ranked(rows[:2], 45, 50)
    assert [documents.ids(ranked) for ranked in window] == [list(wanted[query])[45:50] for query in list(wanted)[:2]]


def test_scores_decide_the_order_and_ties_stay_as_in_the_file(folder: Path) -> None:
    rankings = opened(folder, "q1 Q0 d5 1 0.5 x\nq1 Q0 d9 2 0.7 x\nq1 Q0 d2 3 0.5 x\nq0\tQ0\td1\t1\t-3\tx\n")
    found, _ = rankings.ranked(np.array([1, 0]))
    assert [ranked.tolist() for ranked in found] == [[9, 5, 2], [1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 d1 1 nan x\n", r"x\.run, line 1: the score of document 'd1' is nan; it must be finite"),
        ("q1 Q0 d1 1 0.5 x\nq1 Q0 d2 2 inf x\n", "line 2: the score of document 'd2' is inf"),
        ("q1 Q0 d1 1 0.5 x\n\nq1 d2 0.4\n", "line 3: expected `query Q0 document rank score name`"),
        ("q1 Q0 d1 1 0.5 x\nq1 Q0 d1 2 0.4 x\n", "line 1: a document occurs twice in the list of query 'q1'"),
        ("q1 Q0 d1 1 0.5 x\nnone Q0 d1 1 0.4 x\n", "line 2: query 'none' is not in .*queries.jsonl"),
        ("q1 Q0 d1 1 0.5 x\nq1 Q0 none 2 0.4 x\n", "line 2: document 'none' is not in .*corpus.jsonl"),
        ("q1 Q0 d1 1 1 x\nq2 Q0 d1 1 1 x\nq1 Q0 d2 1 1 x\n", "line 3: query 'q1' was there before.*sort the run"),
        (
            "q1 Q0 d1 1 1e39 x\n",
            r"line 1: the score of document 'd1' is 1e39; it must be finite, and at most 3\.4e\+38",
        ),
        ("", r"nothing in .*x\.run; pass a file with at least one line"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(folder: Path, text: str, message: str) -> None:
    with pytest.raises(CollectionError, match=message):
        opened(folder, text)


def test_a_query_in_two_places_is_named_across_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK_LINES", 1)
    with pytest.raises(CollectionError, match="line 3: query 'q1' was there before"):
        opened(folder, "q1 Q0 d1 1 1 x\nq2 Q0 d1 1 1 x\nq1 Q0 d2 1 1 x\n")
    with pytest.raises(CollectionError, match="There is no run"):
        open_run(folder / "absent.run", *stores(folder), folder / "cache")


def test_queries_without_hits_are_left_out_and_short_lists_padded(folder: Path, tmp_path: Path) -> None:
    """DRAGON, section 4: dropped without any hit; lists shorter than 46 have no hard negative."""
    run = tmp_path / "short.run"
    lists = {0: 1, 7: 45, 9: 46, 11: 60}  # query: length of its list
    lines = [f"q{query} Q0 d{rank} {rank} {-rank} x\n" for query, length in lists.items() for rank in range(length)]
    run.write_text("".join(lines), encoding="utf-8")
    windows = RankWindows(k=50, positives=10, negatives=5)
    teachers = [Teacher(name="x", run=run)]
    dataset = open_one(folder, tmp_path, batch=4, group=3, teachers=teachers, windows=windows)
    assert len(dataset) == 4
    batch = BatchPlan([dataset]).batch(0)
    absent = dict(zip(batch.query_ids, np.array(batch.absent).reshape(4, 3).tolist(), strict=True))
    assert absent == {
        "q0": [False, True, True], "q7": [False, True, True], "q9": [False, False, True], "q11": [False, False, False]
    }  # fmt: skip
    scores = dict(zip(batch.query_ids, batch.scores, strict=True))
    assert scores["q0"][0] == 0
    assert np.isnan(scores["q0"][1:]).all()


def plain_fusion(runs: list[dict[str, float]], weights: list[float], normalisation: str) -> dict[str, float]:
    """Sum over runs of weight times normalised score, the lowest where a run lacks the document."""
    total: dict[str, float] = {}
    for document in {key for run in runs for key in run}:
        for run, weight in zip(runs, weights, strict=True):
            low, high = min(run.values()), max(run.values())
            score = run.get(document, low)
            if normalisation == "min-max":
                score = (score - low) / (high - low)
            total[document] = total.get(document, 0.0) + weight * score
    return total


@pytest.mark.parametrize("normalisation", ["min-max", "none"])
def test_fused_lists_are_the_weighted_sums(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalisation: str
) -> None:
    monkeypatch.setattr(score_fusion, "QUERIES_PER_BLOCK", 16)
    queries, documents = stores(folder)
    weights, runs, teachers = [1.0, 0.3], [], []
    for number, seed in enumerate((1, 2)):
        path = tmp_path / f"{seed}.run"
        runs.append(write_random_run(path, seed, queries=QUERIES - 3 * number))
        teachers.append(open_run(path, queries, documents, tmp_path / "cache"))
    fused = fuse(teachers, weights, queries, tmp_path / "cache", normalisation=normalisation)
    found, scores = fused.ranked(np.arange(QUERIES))
    assert len(fused) == QUERIES
    for row in (0, 20, QUERIES - 1):
        mine = [(run[f"q{row}"], weight) for run, weight in zip(runs, weights, strict=True) if f"q{row}" in run]
        wanted = plain_fusion([run for run, _ in mine], [weight for _, weight in mine], normalisation)
        ours = dict(zip(documents.ids(found[row]), scores[row].tolist(), strict=True))
        assert set(ours) == set(wanted)
        np.testing.assert_allclose([ours[key] for key in wanted], list(wanted.values()), rtol=1e-5)
        assert list(ours.values()) == sorted(ours.values(), reverse=True)


def test_a_list_of_one_score_counts_fully_when_fused(folder: Path, tmp_path: Path) -> None:
    queries, documents = stores(folder)
    teachers = []
    for name, text in (("a", "q0 Q0 d1 1 7 x\n"), ("b", "q0 Q0 d2 1 9 x\nq0 Q0 d3 2 8 x\n")):
        (tmp_path / f"{name}.run").write_text(text, encoding="utf-8")
        teachers.append(open_run(tmp_path / f"{name}.run", queries, documents, tmp_path / "cache"))
    fused = fuse(teachers, [1.0, 2.0], queries, tmp_path / "cache", normalisation="min-max")
    (found,), (scores,) = fused.ranked(np.zeros(1, np.int64))
    assert found.tolist() == [2, 1, 3]
    assert scores.tolist() == [2, 1, 0]


def test_fused_supervision_draws_from_the_fused_list(folder: Path, tmp_path: Path) -> None:
    runs = [write_random_run(tmp_path / f"{seed}.run", seed) for seed in (1, 2)]
    teachers = [Teacher(name=str(seed), run=tmp_path / f"{seed}.run", weight=seed) for seed in (1, 2)]
    dataset = open_one(
        folder, tmp_path, batch=6, group=2, teachers=teachers, supervision=Supervision(kind="fused"),
        windows=RankWindows(k=50, positives=3, negatives=5),
    )  # fmt: skip
    plan = BatchPlan([dataset], seed=1)
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(step)
        for query, positive in zip(batch.query_ids, batch.document_ids[::2], strict=True):
            sums = plain_fusion([run[query] for run in runs], [1, 2], "min-max")
            third = sorted(sums.values(), reverse=True)[2]
            assert sums[positive] >= third - 1e-6
