"""Listwise objectives need a list for each query: what is none is found before training, and no batch has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models.errors import CollectionError
from tests.training.data import write_collection, write_lines, write_random_run
from training.data import shards
from training.data.datasets import DatasetRecipe, TrainingDataset, open_datasets
from training.data.sampling import BatchPlan
from training.data.supervision import RankWindows, Supervision, Teacher

WINDOWS = RankWindows(k=8, positives=2, negatives=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("lists") / "c")


def opened(folder: Path, tmp_path: Path, *, lists: bool = True, batch: int = 4, **fields: Any) -> TrainingDataset:
    settings: dict[str, Any] = {"name": "a", "task": "retrieval", "collection": folder} | fields
    recipe = DatasetRecipe(**settings)
    (dataset,) = open_datasets([recipe], batch_size=batch, negatives=3, cache=tmp_path / "cache", lists=lists)
    return dataset


def example(number: int, negatives: list[str], **scores: float) -> dict[str, Any]:
    return {
        "query_id": f"e{number}", "query": f"ask {number}", "positive_ids": [f"d{number}"], "negative_ids": negatives,
        "scores": scores,
    }  # fmt: skip


def scored(number: int) -> dict[str, Any]:
    return example(number, [f"d{number + 20}"], **{f"d{number}": 1.0, f"d{number + 20}": 0.0})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (example(3, [], d3=1.0), "query 'e3' has 0 negatives, and teacher scores for 1 of its 1 documents"),
        (example(3, ["d4"], d3=1.0), "query 'e3' has 1 negatives, and teacher scores for 1 of its 2 documents"),
        (example(3, ["d4"]), "query 'e3' has 1 negatives, and teacher scores for 0 of its 2 documents"),
    ],
)
@pytest.mark.parametrize("block", [2, 1 << 15])
def test_an_example_that_is_no_list_is_named_with_its_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, bad: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(shards, "BLOCK_LINES", block)
    lines = [scored(0), "", scored(1), scored(2), "", bad, scored(4), example(5, [])]
    examples = write_lines(tmp_path / "e.jsonl", *lines)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(CollectionError, match=rf"e\.jsonl, line 6: {message}.*set unscored: skip"):
            opened(folder, tmp_path, examples=examples)
    assert len(opened(folder, tmp_path, examples=examples, lists=False)) == 6


def test_a_run_whose_list_has_no_hard_negatives_is_named_with_its_line(folder: Path, tmp_path: Path) -> None:
    write_random_run(tmp_path / "whole.run", seed=0, queries=8, depth=9)
    cut = [line for line in (tmp_path / "whole.run").read_text().splitlines() if not line.startswith("q5 ")]
    (tmp_path / "cut.run").write_text("\n".join([*cut, *(f"q5 Q0 d{n} {n} {-n} x" for n in range(1, 5))]) + "\n")
    teachers = [Teacher(name=name, run=tmp_path / f"{name}.run") for name in ("whole", "cut")]
    assert len(opened(folder, tmp_path, teachers=teachers[:1], windows=WINDOWS)) == 8
    with pytest.raises(
        CollectionError, match=r"cut\.run, line 64: the list of query 'q5' ends at rank 4, before ranks 5"
    ):
        opened(folder, tmp_path, teachers=teachers, windows=WINDOWS)
    longer = [
        teachers[0],
        Teacher(name="cut", run=tmp_path / "cut.run", windows=RankWindows(k=4, positives=1, negatives=2)),
    ]
    assert len(opened(folder, tmp_path, teachers=longer, windows=WINDOWS)) == 8
    fused: dict[str, Any] = {"teachers": teachers[1:], "supervision": Supervision(kind="fused"), "windows": WINDOWS}
    with pytest.raises(
        CollectionError, match=r"Fused lists of .*queries\.jsonl: the list of query 'q5' ends at rank 4"
    ):
        opened(folder, tmp_path, **fused)


def test_no_batch_holds_a_list_of_one(folder: Path, tmp_path: Path) -> None:
    """Queries 2n and 2n + 1 share their only negative, so at most one of them can bring it into a batch."""
    lines = [
        example(n, [f"d{100 + n // 2}"], **{f"d{n}": 1.0, f"d{100 + n // 2}": 0.0}) for n in range(24)
    ]  # fmt: skip
    examples = write_lines(tmp_path / "e.jsonl", *lines)
    for lists in (True, False):
        data = opened(folder, tmp_path, examples=examples, batch=8, negatives=1, lists=lists)
        plans = [BatchPlan([data], seed=seed) for seed in range(5)]
        lone = [np.sum(plan.planned(step).documents[:, 1] < 0) for plan in plans for step in range(3)]
        assert (max(lone) == 0) == lists
    with pytest.raises(CollectionError, match="cannot fill a batch of 16 queries with distinct documents"):
        BatchPlan([opened(folder, tmp_path, examples=examples, batch=16, negatives=1)]).planned(0)


def test_a_positive_alone_is_no_list_and_no_classification(folder: Path, tmp_path: Path) -> None:
    examples = write_lines(tmp_path / "e.jsonl", *(scored(n) for n in range(8)))
    with pytest.raises(CollectionError, match=r"'a' brings a positive without .* a list of one teaches"):
        opened(folder, tmp_path, examples=examples, negatives=0)
    bare = write_lines(tmp_path / "bare.jsonl", *(example(n, []) for n in range(8)))
    with pytest.raises(CollectionError, match=r"'a' brings a positive without hard negatives .* no other"):
        opened(folder, tmp_path, examples=bare, task="classification", lists=False)
    assert opened(folder, tmp_path, examples=bare, lists=False).group_size == 4
