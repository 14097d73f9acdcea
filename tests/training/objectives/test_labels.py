"""Labels of a batch: what a wrong one says, and how a document is recognised."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from drama_models.errors import TrainingError
from tests.training.batches import labels
from training.objectives import Labels
from training.objectives.labels import identity_of


def test_lists_of_a_batch_become_tensors() -> None:
    found = Labels.of(
        positives=[1, 2], absent=[False, False, False, True], scores=[[0.5, 0.25], [1, math.nan]], document_ids="abca"
    )
    assert found.positive.dtype == torch.int64
    assert found.positive_column.tolist() == [1, 0]
    assert found.scored.tolist() == [[True, True], [True, False]]
    assert found.identity is not None
    assert (found.identity[0] == found.identity).tolist() == [True, False, False, True]
    moved = found.to("meta")
    assert {moved.positive.device, moved.absent.device, moved.scores.device} == {torch.device("meta")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": [0, 1]}, "the positive of query 1 is row 1, but its own documents are rows 2 to 3"),
        ({"positives": [0, 3]}, "the positive of query 1 is marked absent"),
        ({"positives": [0]}, r"positive has shape \(1,\), but scores .* mean 2 queries with 2 documents each"),
        ({"absent": [False] * 3}, r"absent has shape \(3,\).* pass absent with shape \(4,\)"),
        ({"scores": [[0.5, 0.25], [math.inf, 0]]}, "a teacher score of query 1 is infinite"),
        ({"document_ids": "abc"}, r"identity has shape \(3,\)"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"positives": [0, 2], "absent": [False, False, False, True], "scores": [[0.5, 0.25]] * 2}
    with pytest.raises(TrainingError, match=message):
        Labels.of(**(given | change))  # type: ignore[arg-type]


def test_an_id_has_the_same_number_in_every_process() -> None:
    command = "from training.objectives.labels import identity_of; print(identity_of('document 7'))"
    printed = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
    assert int(printed) == identity_of("document 7")
    assert len({identity_of(f"document {number}") for number in range(1000)}) == 1000


def test_without_ids_no_document_occurs_twice() -> None:
    assert labels().identity is None
