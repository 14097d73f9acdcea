"""Two processes must train as one with the joined batch: same loss, and after averaging the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from drama_models.errors import TrainingError
from tests.training.batches import embeddings, labels
from tests.training.two_processes import CASES, WORLD, process, together
from training.cross_device import gather_batch, join_batches, widen
from training.objectives import Contrastive


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, for every case."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(process, (str(folder),), nprocs=WORLD, start_method="spawn")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, apart: Path) -> None:
    wanted = together(CASES[name])
    assert len(wanted) > 6
    for rank in range(WORLD):
        found = load_file(apart / f"{name} {rank}.safetensors")
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def test_processes_that_differ_are_all_told_so(apart: Path) -> None:
    for rank in range(WORLD):
        told = (apart / f"refused {rank}.txt").read_text(encoding="utf-8")
        assert told.startswith(
            "processes differ in in-batch negatives: [1, 0] by rank; train the same model everywhere"
        )


def test_the_factor_is_the_number_of_processes() -> None:
    known = labels()
    parts = [[x.requires_grad_() for x in embeddings(seed)] for seed in range(3)]
    joined = join_batches([(query, document, known) for query, document in parts], own=1)
    assert joined[2].positive.tolist() == [0, 3, 6, 10, 12, 15, 18, 22, 24, 27, 30, 34]
    joined[0].sum().backward()
    gradients: list[Tensor | None] = [query.grad for query, _ in parts]
    assert gradients[0] is gradients[2] is None
    assert gradients[1] is not None
    assert gradients[1].unique().tolist() == [3.0]


def test_one_process_keeps_its_batch() -> None:
    query, document = embeddings()
    known = labels()
    assert gather_batch(query, document, known) == (query, document, known)


def test_a_batch_filled_up_has_the_same_loss() -> None:
    query, document = embeddings()
    known = labels(absent=(1,), ids="abcadedbefgh")
    wide = widen((query, document, known), 5)
    assert wide[1].shape == (20, 16)
    assert wide[2].absent.sum() == 9
    torch.testing.assert_close(Contrastive()(*wide), Contrastive()(query, document, known))


def test_labels_of_another_batch_are_refused_before_anything_is_sent() -> None:
    query, document = embeddings()
    with pytest.raises(TrainingError, match="labels of 2 queries with 3 documents each"):
        gather_batch(query, document, labels(queries=2))
