"""Whose list counts when, and that draws have the distribution that the papers state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from drama_models.errors import CollectionError
from tests.replays.dragon import positive_distribution
from tests.training.data import QUERIES, open_one, write_collection, write_random_run
from training.data.distinct_batches import plan_window
from training.data.rankings import RankedQueries
from training.data.sampling import BatchPlan
from training.data.supervision import RankWindows, Supervision, Teacher

DRAGON = RankWindows(k=50, positives=10, negatives=5)
RANKED = [f"d{rank}" for rank in range(1, 61)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("supervision")
    write_collection(root / "c")
    for seed in (1, 2, 3):
        write_random_run(root / f"{seed}.run", seed, queries=QUERIES if seed > 1 else QUERIES - 10)
    return root


def teachers(folder: Path, *seeds: int) -> list[Teacher]:
    return [Teacher(name=str(seed), run=folder / f"{seed}.run") for seed in seeds]


@pytest.mark.parametrize(
    ("windows", "positives", "negatives"),
    [
        (DRAGON, range(1, 11), range(46, 51)),
        (RankWindows(k=50, positives=10, negatives=20), range(1, 11), range(31, 51)),
        (RankWindows(k=20, positives=1, negatives=10), range(1, 2), range(11, 21)),
    ],
)
def test_windows_of_the_papers(windows: RankWindows, positives: range, negatives: range) -> None:
    assert RANKED[windows.top] == [f"d{rank}" for rank in positives]
    assert RANKED[windows.end] == [f"d{rank}" for rank in negatives]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 10, "positives": 6, "negatives": 5}, "set a larger k"),
        ({"positives": 0}, "positives=0 must be at least 1"),
        ({"negatives": -1}, "negatives at least 0|negatives=-1"),
    ],
)
def test_windows_without_sense_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankWindows(**settings)


def test_one_more_teacher_is_active_in_every_iteration() -> None:
    supervision = Supervision(kind="progressive", epochs_per_iteration=2)
    active = [list(supervision.active(3, supervision.iteration(3, epoch=epoch))) for epoch in range(8)]
    assert active == [[0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    newest = Supervision(kind="progressive", newest_only_at_end=True)
    assert [list(newest.active(3, iteration)) for iteration in (1, 2, 3)] == [[0], [0, 1], [2]]
    by_steps = Supervision(kind="progressive", steps_per_iteration=10)
    assert [by_steps.iteration(3, epoch=0, step=step) for step in (0, 9, 10, 29, 30, 99)] == [1, 1, 2, 3, 3, 3]
    uniform = Supervision(kind="uniform")
    assert uniform.iteration(3, epoch=50) == 1
    assert list(uniform.active(3, 1)) == [0, 1, 2]
    with pytest.raises(ValueError, match="must be at least 1"):
        Supervision(epochs_per_iteration=0)


def test_positives_are_drawn_as_often_as_the_formula_says(folder: Path) -> None:
    """P(d) = sum over teachers of [d in their top 10] / (10 T), over many epochs of one query."""
    dataset = open_one(folder / "c", folder / "cache", batch=QUERIES, teachers=teachers(folder, 2, 3), windows=DRAGON)
    labels = dataset.labels
    assert isinstance(labels, RankedQueries)
    epochs = 400
    drawn: Counter[int] = Counter()
    for epoch in range(epochs):
        (planned,) = plan_window(dataset, 0, seed=0, epoch=epoch)
        drawn[int(planned.documents[planned.queries == 5, 0][0])] += 1
    ranked = [teacher.ranked(np.array([5]))[0][0] for teacher in labels.teachers]
    chances = positive_distribution([[str(row) for row in rows] for rows in ranked], DRAGON)
    assert sum(chance for _, chance, _ in chances) == pytest.approx(1)
    assert set(drawn) <= {int(document) for document, _, _ in chances}
    for document, chance, _ in chances:  # 4.5 standard deviations; conflicts in the batch move little
        deviation = (chance * (1 - chance) / epochs) ** 0.5
        assert abs(drawn[int(document)] / epochs - chance) < 4.5 * deviation


def test_labels_come_from_active_teachers_that_have_hits_and_change_with_the_epoch(folder: Path) -> None:
    supervision = Supervision(kind="progressive", epochs_per_iteration=1)
    dataset = open_one(
        folder / "c", folder / "cache", batch=10, teachers=teachers(folder, 1, 2), windows=DRAGON,
        supervision=supervision,
    )  # fmt: skip
    plan = BatchPlan([dataset], seed=3)
    first, second = dataset.labels.teachers  # type: ignore[attr-defined]
    seen: dict[int, dict[int, int]] = {0: {}, 1: {}, 2: {}}
    of_second = 0
    for step in range(3 * plan.steps_per_epoch):
        planned, epoch = plan.planned(step), plan.epoch(step)
        assert plan.iteration(step) == min(epoch + 1, 2)
        for query, positive in zip(planned.queries, planned.documents[:, 0], strict=True):
            seen[epoch][int(query)] = int(positive)
            tops = {}
            for name, teacher in (("first", first), ("second", second)):
                if teacher.covers(np.array([query]))[0]:
                    tops[name] = teacher.ranked(np.array([query]), 0, 10)[0][0]
            if epoch == 0:
                assert positive in tops["first"]  # the last ten queries wait until the second teacher is there
            else:
                assert any(positive in top for top in tops.values())
                of_second += positive in tops["second"]
    assert max(seen[0]) < QUERIES - 10
    assert max(seen[1]) >= QUERIES - 10
    assert 0.4 < of_second / (2 * plan.steps_per_epoch * 10) < 0.8
    both = seen[1].keys() & seen[2].keys()
    assert sum(seen[1][query] != seen[2][query] for query in both) > 0.7 * len(both)


def test_a_teacher_of_too_few_queries_is_the_reason_that_is_given(folder: Path) -> None:
    dataset = open_one(
        folder / "c", folder / "cache", batch=QUERIES, teachers=teachers(folder, 1, 2), windows=DRAGON,
        supervision=Supervision(kind="progressive", epochs_per_iteration=1),
    )  # fmt: skip
    with pytest.raises(CollectionError, match=rf"more queries: 10 of {QUERIES} have no positive in them"):
        BatchPlan([dataset]).planned(0)


def test_each_teacher_can_have_its_own_windows(folder: Path) -> None:
    reranked = RankWindows(k=20, positives=1, negatives=10)
    mixed = [*teachers(folder, 2), Teacher(name="reranked", run=folder / "3.run", windows=reranked)]
    dataset = open_one(folder / "c", folder / "cache", batch=QUERIES, teachers=mixed, windows=DRAGON)
    pools = dataset.labels.pools(np.arange(QUERIES), 1, 0)
    sizes = Counter((len(p), len(n)) for p, n in zip(pools.positives, pools.negatives, strict=True))
    assert set(sizes) == {(10, 5), (1, 10)}
    assert min(sizes.values()) > QUERIES // 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"supervision": Supervision(kind="single"), "teachers": "12"}, "has 2 teachers; keep one"),
        ({"teachers": "11"}, "two teachers of one name"),
        ({}, "must have either examples or teachers"),
        ({"teachers": "1", "task": ""}, "Dataset 'data' has no task; set task to one of retrieval"),
        ({"teachers": "1", "task": "search"}, "task='search', which is none; choose one of retrieval"),
        ({"teachers": "1", "weight": 0.0}, "weight=0.0; it must be positive"),
    ],
)
def test_datasets_without_sense_are_refused(folder: Path, fields: dict[str, object], message: str) -> None:
    given = fields | {"teachers": teachers(folder, *(int(seed) for seed in str(fields.get("teachers", ""))))}
    with pytest.raises(ValueError, match=message):
        open_one(folder / "c", folder / "cache", **given)  # type: ignore[arg-type]
