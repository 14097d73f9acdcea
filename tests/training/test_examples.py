"""Training examples, label pools and mined negatives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drama_models import BM25
from drama_models.errors import CollectionError
from training.augment.mine import mine_negatives
from training.data.examples import TrainingExample, read_examples, write_examples
from training.data.supervision import RankWindows

DOCUMENTS = {f"d{number}": f"common word number {number} " + "rare " * (number == 3) for number in range(30)}


def test_examples_come_back_as_written(tmp_path: Path) -> None:
    examples = [
        TrainingExample(query_id="1", query="ключ?", positive_ids=["d1"], negative_ids=["d2"], scores={"d1": 0.5}),
        TrainingExample(query_id="2", query="two", positive_ids=["d3", "d4"], task="search", source="human"),
    ]
    assert write_examples(tmp_path / "e.jsonl", examples) == 2
    assert list(read_examples(tmp_path / "e.jsonl")) == examples
    first = json.loads((tmp_path / "e.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {
        "query_id", "query", "positive_ids", "negative_ids", "teacher", "scores", "task", "source"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{cut", r"e\.jsonl, line 2: not a training example"),
        ('{"query_id": "2", "query": "x"}', r"line 2: .*positive_ids"),
        ('{"query_id": "2", "query": "x", "positive_ids": ["a"], "answer": 1}', r"line 2: .*answer"),
        ('{"query_id": "2", "query": "x", "positive_ids": []}', r"line 2: query '2' has no positive"),
    ],
)
def test_a_broken_example_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"query_id": "1", "query": "x", "positive_ids": ["a"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CollectionError, match=message):
        list(read_examples(path))
    with pytest.raises(CollectionError, match="There are no training examples"):
        list(read_examples(tmp_path / "absent.jsonl"))


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into k=10; set a larger k"):
        RankWindows(k=10, positives=5, negatives=6)


def test_mined_negatives_are_the_teachers_ranks_without_positives() -> None:
    teacher = BM25(DOCUMENTS.items())
    query = "common rare"
    ranked = [key for key, _ in teacher.search([query], k=30)[0]]
    assert ranked[0] == "d3"
    example = TrainingExample(query_id="q", query=query, positive_ids=["d3"])
    (mined,) = mine_negatives([example], teacher, name="bm25", first_rank=3, last_rank=7)
    assert mined.negative_ids == ranked[3:8]  # rank 1 of the others is the second of all
    assert mined.teacher == "bm25"
    assert "d3" not in mined.negative_ids
    with pytest.raises(ValueError, match="no window"):
        list(mine_negatives([example], teacher, name="bm25", first_rank=0, last_rank=3))
