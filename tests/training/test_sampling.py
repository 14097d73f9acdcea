"""Batches are a function of seed and step: no duplicates, ratios as asked, ranks' parts join, resume needs no state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from drama_models.collection import Collection
from drama_models.errors import CollectionError, RecipeError
from drama_models.recipe import load_recipe
from tests.training.data import EXAMPLES, open_one, write_collection, write_lines, write_plain_examples
from training.data import distinct_batches
from training.data.datasets import DatasetRecipe, TrainingDataset, open_datasets, task_named
from training.data.draws import draw, draw_below, permute
from training.data.sampling import BatchPlan, mixture_counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sampling")
    write_collection(root / "c")
    write_plain_examples(root / "e.jsonl")
    return root


def dataset(folder: Path, **fields: Any) -> TrainingDataset:
    return open_one(folder / "c", folder / "cache", **{"examples": folder / "e.jsonl"} | fields)


@given(st.integers(1, 20_000), st.integers(0, 2**40), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    rows = permute(np.arange(length), length, seed, epoch)
    assert sorted(rows.tolist()) == list(range(length))
    some = np.arange(length)[:: max(length // 7, 1)]
    assert permute(some, length, seed, epoch).tolist() == rows[some].tolist()


def test_permutations_of_all_keys_together_are_uniform() -> None:
    """Chi-square of where each of 5 rows goes, over 4,000 keys: 16 degrees of freedom, 39.3 is the 0.1 % point."""
    counts = np.zeros((5, 5))
    for key in range(4000):
        counts[np.arange(5), permute(np.arange(5), 5, key)] += 1
    assert ((counts - 800) ** 2 / 800).sum() < 39.3


def test_draws_are_uniform_and_tell_coordinates_apart() -> None:
    values = draw(1, 2, np.arange(100_000))
    assert len(np.unique(values)) == 100_000
    assert abs(values.astype(np.float64).mean() / 2**64 - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    assert draw(1, 2) != draw(2, 1)
    assert draw(0, 0) != draw(0)
    counts = np.bincount(draw_below(3, 7, np.arange(30_000)), minlength=3)
    assert np.abs(counts - 10_000).max() < 5 * (30_000 * 2 / 9) ** 0.5


def test_an_epoch_has_every_query_once_and_the_next_has_another_order(folder: Path) -> None:
    plan = BatchPlan([dataset(folder, batch=10)], seed=5)
    assert plan.steps_per_epoch == EXAMPLES // 10
    epochs = []
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        epochs.append(np.concatenate([plan.planned(step).queries for step in steps]))
    repeated = EXAMPLES - len(set(epochs[0].tolist()))
    assert repeated <= 3  # neighbours share documents here, so the last batch of a window may need another query
    assert epochs[0].tolist() != epochs[1].tolist()


def repetitions(plan: BatchPlan, steps: int) -> list[str]:
    """What comes more than once within a batch: ids and texts of documents, ids of queries."""
    repeated = []
    for step in range(steps):
        batch = plan.batch(step)
        present = [place for place, absent in enumerate(batch.absent) if not absent]
        ids = [batch.document_ids[place] for place in present]
        texts = [batch.documents[place].lower() for place in present]
        for values in (ids, texts, batch.query_ids):
            repeated += [f"step {step}: {value}" for value, count in Counter(values).items() if count > 1]
    return repeated


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_no_document_comes_twice_in_a_batch(folder: Path, seed: int) -> None:
    assert repetitions(BatchPlan([dataset(folder, batch=25, group=4)], seed=seed), 6) == []


def test_documents_of_equal_text_do_not_meet(tmp_path: Path) -> None:
    texts = ["Same text", "same  TEXT", "Other", "More", "Yet more", "And more"]
    records = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(texts)]
    Collection.write(tmp_path / "c", records)
    lines = [
        {"query_id": str(n), "query": f"ask {n}", "positive_ids": [f"d{n}"], "negative_ids": ["d5"]} for n in range(5)
    ]
    examples = write_lines(tmp_path / "e.jsonl", *lines)
    plan = BatchPlan([open_one(tmp_path / "c", tmp_path, batch=4, group=2, examples=examples)])
    for step in range(30):
        batch = plan.batch(step)
        assert len({"0", "1"} & set(batch.query_ids)) == 1
        assert batch.absent.count(False) == 5  # four positives and d5 once
    assert repetitions(plan, 30) == []


def test_queries_of_equal_text_do_not_meet(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"query_id": str(n), "query": "same" if n < 2 else f"ask {n}", "positive_ids": [f"d{n}"]} for n in range(4)
    ]
    plan = BatchPlan([dataset(folder, examples=write_lines(tmp_path / "e.jsonl", *lines), batch=3, group=1)])
    for step in range(10):
        assert len({"0", "1"} & set(plan.batch(step).query_ids)) == 1


def test_tasks_of_texts_of_one_kind_have_half_the_queries_and_one_at_least() -> None:
    assert [task_named("sts").batch_size(size) for size in (1, 2, 9)] == [1, 1, 4]
    assert [task_named("retrieval").batch_size(size) for size in (1, 2, 9)] == [1, 2, 9]


def test_rows_that_share_labels_may_share_documents(folder: Path, tmp_path: Path) -> None:
    """Classification has few documents, its labels: the own group alone is distinct, and no negative is in-batch."""
    lines = [
        {"query_id": str(n), "query": f"ask {n}", "positive_ids": [f"d{n % 2}"], "negative_ids": [f"d{1 - n % 2}"]}
        for n in range(8)
    ]
    examples = write_lines(tmp_path / "e.jsonl", *lines)
    data = dataset(folder, examples=examples, batch=8, negatives=None, task="classification")
    batch = BatchPlan([data]).batch(0)
    assert not batch.task.in_batch_negatives
    assert data.group_size == 2  # one negative in the first row, fewer than the default 7
    assert Counter(batch.document_ids) == {"d0": 8, "d1": 8}
    assert [set(batch.document_ids[n : n + 2]) for n in batch.positives] == [{"d0", "d1"}] * 8
    with pytest.raises(CollectionError, match=r"'data' cannot fill a batch of 8 .* 1 fit; set a smaller batch_size"):
        BatchPlan([dataset(folder, examples=examples, batch=8, task="retrieval")]).batch(0)


def test_too_few_negatives_are_padded_or_repeated(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"query_id": str(n), "query": f"ask {n}", "positive_ids": [f"d{9 * n}"],
         "negative_ids": [f"d{9 * n + place}" for place in (1, 2, 3)]} for n in range(6)
    ]  # fmt: skip
    examples = write_lines(tmp_path / "e.jsonl", *lines)
    padded = BatchPlan([dataset(folder, examples=examples, batch=6, group=8)]).batch(0)
    assert np.array(padded.absent).reshape(6, 8).tolist() == [[False] * 4 + [True] * 4] * 6
    assert [text for text, absent in zip(padded.documents, padded.absent, strict=True) if absent] == [""] * 24
    repeated = BatchPlan([dataset(folder, examples=examples, batch=6, group=8, too_few_negatives="repeat")]).batch(0)
    assert not any(repeated.absent)
    for number in range(6):  # ceil(7 / 3) = 3 copies of each of 3 negatives, 7 of these 9 drawn
        own = Counter(repeated.document_ids[8 * number + 1 : 8 * number + 8])
        assert sum(own.values()) == 7
        assert len(own) == 3
        assert max(own.values()) <= 3


@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_resuming_at_any_step_gives_the_same_batches(folder: Path, steps: list[int], seed: int) -> None:
    def fresh() -> BatchPlan:
        return BatchPlan([dataset(folder, name="a"), dataset(folder, name="b", batch=6, group=2)], seed=seed)

    going = fresh()
    batches = [going.batch(step) for step in range(max(steps) + 1)] if max(steps) < 60 else None
    for step in steps:
        resumed = fresh().batch(step)
        other = batches[step] if batches else going.batch(step)
        assert resumed.query_ids == other.query_ids
        assert resumed.document_ids == other.document_ids
        np.testing.assert_array_equal(resumed.scores, other.scores)


@pytest.mark.parametrize("world_size", [2, 4])
def test_parts_of_the_ranks_join_to_the_batch_of_one_process(folder: Path, world_size: int) -> None:
    data = dataset(folder, batch=8)
    whole = BatchPlan([data], seed=2)
    ranks = [BatchPlan([data], seed=2, world_size=world_size, rank=rank) for rank in range(world_size)]
    for step in (0, 3, 20):
        joined, parts = whole.batch(step), [plan.batch(step) for plan in ranks]
        for name in ("query_ids", "queries", "document_ids", "documents", "absent"):
            assert [value for part in parts for value in getattr(part, name)] == getattr(joined, name)
        assert all(part.positives == list(range(0, 24 // world_size, 3)) for part in parts)
    with pytest.raises(RecipeError, match="set batch_size to a multiple of 3"):
        BatchPlan([data], world_size=3)


@given(weights=st.lists(st.floats(0.05, 10), min_size=2, max_size=5), batches=st.data())
@settings(max_examples=20, deadline=None)
def test_queries_are_seen_in_the_ratio_of_the_weights(folder: Path, weights: list[float], batches: Any) -> None:
    sizes = batches.draw(st.lists(st.sampled_from([2, 3, 6]), min_size=len(weights), max_size=len(weights)))
    data = [
        dataset(folder, name=f"{number}", weight=weight, batch=size)
        for number, (weight, size) in enumerate(zip(weights, sizes, strict=True))
    ]
    counts = mixture_counts(data)
    seen = np.array(counts) * np.array(sizes)
    exact = np.array(weights) / np.array(sizes)
    exact *= sum(len(one) // one.batch_size for one in data) / exact.sum()
    assert all(abs(count - wanted) <= 1 for count, wanted in zip(counts, exact, strict=True))
    np.testing.assert_allclose(seen / seen.sum(), np.array(weights) / sum(weights), atol=0.15)
    plan = BatchPlan(data, seed=1)
    drawn = Counter(plan.dataset(step).name for step in range(2 * plan.steps_per_epoch))
    assert drawn == {str(number): 2 * count for number, count in enumerate(counts)}


def test_two_to_one_to_one_beside_supervised_data(folder: Path) -> None:
    """DRAMA's mixture: enWeb, mWiki and mWeb as 2:1:1, supervised data beside them, each batch of one dataset."""
    shares = {"enWeb": 2.0, "mWiki": 1.0, "mWeb": 1.0, "supervised": 0.5}
    plan = BatchPlan([dataset(folder, name=name, weight=weight, batch=5) for name, weight in shares.items()])
    names = [plan.batch(step).dataset for step in range(plan.steps_per_epoch)]
    counts = Counter(names)
    for name, weight in shares.items():
        assert counts[name] / len(names) == pytest.approx(weight / 4.5, abs=1 / len(names))
    assert len(set(names[:12])) >= 3  # mixed, not one after the other


def test_without_weights_an_epoch_is_every_full_batch_of_each(folder: Path, tmp_path: Path) -> None:
    small = write_plain_examples(tmp_path / "small.jsonl", count=13)
    plan = BatchPlan([dataset(folder, name="large", batch=7), dataset(folder, name="small", examples=small, batch=4)])
    assert plan.batches_per_epoch == [EXAMPLES // 7, 13 // 4]


def test_task_decides_batch_size_and_negatives(folder: Path) -> None:
    recipes = [
        DatasetRecipe(name=task, task=task, collection=folder / "c", examples=folder / "e.jsonl")
        for task in ("retrieval", "only_1neg", "sts", "clustering", "classification", "symmetric_class")
    ]
    opened = open_datasets(recipes, batch_size=20, negatives=7, cache=folder / "cache")
    assert [data.batch_size for data in opened] == [20, 20, 10, 10, 10, 10]
    assert [data.group_size for data in opened] == [8, 2, 8, 8, 7, 7]
    assert [data.task.in_batch_negatives for data in opened] == [True, True, False, False, False, False]
    (own,) = open_datasets(
        [DatasetRecipe(name="x", task="sts", collection=folder / "c", examples=folder / "e.jsonl", batch_size=9,
                       negatives=2, in_batch_negatives=True)], cache=folder / "cache",
    )  # fmt: skip
    assert (own.batch_size, own.group_size, own.task.in_batch_negatives) == (9, 3, True)


def test_mixtures_without_sense_are_refused(folder: Path, tmp_path: Path) -> None:
    def recipe(**fields: Any) -> DatasetRecipe:
        plain: dict[str, Any] = {
            "name": "a",
            "task": "retrieval",
            "collection": folder / "c",
            "examples": folder / "e.jsonl",
        }
        return DatasetRecipe(**plain | fields)

    def opened(*recipes: DatasetRecipe) -> list[TrainingDataset]:
        return open_datasets(recipes, batch_size=4, cache=folder / "cache")

    with pytest.raises(RecipeError, match="no datasets; add at least one"):
        opened()
    with pytest.raises(RecipeError, match="Two datasets have one name"):
        opened(recipe(), recipe())
    with pytest.raises(RecipeError, match="a have a weight, b have none; set it for all or for none"):
        opened(recipe(weight=1.0), recipe(name="b"))
    with pytest.raises(
        CollectionError, match=r"'a' has 150 queries in .*e\.jsonl, fewer than its batch of 151; set a smaller"
    ):
        opened(recipe(batch_size=151))
    with pytest.raises(CollectionError, match="at least one line"):
        opened(recipe(), recipe(name="empty", examples=write_lines(tmp_path / "none.jsonl")))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe with a mixture."""

    datasets: list[DatasetRecipe]
    """Its datasets."""


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"task": ""}, r"recipe.yaml, line 6: Dataset 'b' has no task; set task to one of retrieval"),
        ({"task": "search"}, "line 6: Dataset 'b' has task='search', which is none"),
        ({"exampels": "e"}, r"line 10: Run has no field 'datasets\[1\].exampels'; did you mean 'examples'"),
        ({"weight": "much"}, "line 10: .*weight"),
        ({"weight": 0}, "line 10: Dataset 'b' has weight=0.0; it must be positive"),
        ({"supervision": {"kind": "slow"}}, r"line 11: .*supervision\.kind"),
        (
            {"teachers": [{"name": "t", "rum": "x"}]},
            r"line 12: .*'datasets\[1\].teachers\[0\].rum'; did you mean 'run'",
        ),
    ],
)
def test_a_wrong_dataset_is_named_by_the_line_of_the_recipe(
    tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    first = {"name": "a", "collection": "c", "examples": "e"}
    entries = [first | {"task": "sts"}, {"name": "b", "collection": "c", "examples": "e", "task": "sts"} | second]
    text = yaml.safe_dump({"datasets": entries}, sort_keys=False)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(Run, tmp_path / "recipe.yaml")


def test_windows_hold_a_bounded_number_of_queries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct_batches, "WINDOW_QUERIES", 20)
    data = dataset(folder, batch=5)
    assert distinct_batches.batches_per_window(data) == 4
    plan = BatchPlan([data], seed=7)
    queries = np.concatenate([plan.planned(step).queries for step in range(plan.steps_per_epoch)])
    assert len(set(queries.tolist())) >= EXAMPLES - 10
    assert repetitions(plan, plan.steps_per_epoch) == []
