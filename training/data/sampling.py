"""Which batch comes at which step: a mixture of datasets by weight, every step a function of the seed and its number.

Nothing is kept between steps, so a run resumes in the middle of an epoch by asking for the next one, and every process
of several plans the same global batch and reads the texts of its own contiguous part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from drama_models.errors import RecipeError
from training.data.batches import read_texts
from training.data.distinct_batches import batches_per_window, plan_window
from training.data.draws import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.data.batches import PlannedBatch, TextBatch
    from training.data.datasets import TrainingDataset

SCHEDULE = 1 << 16  # tells the draws of the schedule from those of datasets


class BatchPlan:
    """The batches of a run.

    With weights, queries of the datasets are seen in their ratio, and an epoch is as many steps as all data make;
    without, an epoch has every full batch of every dataset once.

    Args:
        datasets: of `open_datasets`.
        seed: of the order and all draws.
        world_size: processes that share a global batch.
        rank: of this one.

    Raises:
        RecipeError: a batch size that the processes cannot share equally.
    """

    def __init__(
        self, datasets: Sequence[TrainingDataset], *, seed: int = 0, world_size: int = 1, rank: int = 0
    ) -> None:
        for dataset in datasets:
            if dataset.batch_size % world_size:
                raise RecipeError(
                    f"Dataset {dataset.name!r} has batches of {dataset.batch_size}, which {world_size} processes "
                    f"cannot share equally; set batch_size to a multiple of {world_size}."
                )
        self.datasets, self.seed, self.world_size, self.rank = list(datasets), seed, world_size, rank
        self.batches_per_epoch = mixture_counts(self.datasets)
        """Batches of each dataset in an epoch."""
        self._schedules: dict[int, tuple[NDArray[np.int16], NDArray[np.int64]]] = {}
        self._windows: dict[int, tuple[tuple[int, ...], list[PlannedBatch]]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which the mixture has been seen once."""
        return sum(self.batches_per_epoch)

    def epoch(self, step: int) -> int:
        """Epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def iteration(self, step: int) -> int:
        """Iteration of progressive supervision, counted from 1: the furthest of all datasets."""
        return max(self._iteration(dataset, step) for dataset in self.datasets)

    def dataset(self, step: int) -> TrainingDataset:
        """Where the batch of a step comes from."""
        return self.datasets[self._place(step)[0]]

    def planned(self, step: int) -> PlannedBatch:
        """The global batch of a step, in rows.

        Raises:
            CollectionError: the dataset has too few distinct documents for a batch.
        """
        index, ordinal = self._place(step)
        dataset = self.datasets[index]
        epoch, number = divmod(ordinal, dataset.batches_per_epoch)
        window, place = divmod(number, batches_per_window(dataset))
        wanted = (epoch, window, self._iteration(dataset, step))
        held = self._windows.get(index)
        if held is None or held[0] != wanted:
            planned = plan_window(dataset, window, seed=self.seed, epoch=epoch, iteration=wanted[2])
            held = self._windows[index] = wanted, planned
        return held[1][place]

    def batch(self, step: int) -> TextBatch:
        """The part of this process of the batch of a step, as texts; steps count from 0.

        Raises:
            CollectionError: the dataset has too few distinct documents for a batch.
        """
        return read_texts(self.dataset(step), self.planned(step).rank_slice(self.rank, self.world_size))

    def _iteration(self, dataset: TrainingDataset, step: int) -> int:
        return dataset.supervision.iteration(dataset.teachers, epoch=self.epoch(step), step=step)

    def _place(self, step: int) -> tuple[int, int]:
        """Dataset of a step, and which of that dataset's batches it is, counted over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._schedules:
            self._schedules = {epoch: self._schedule(epoch)}
        order, ordinals = self._schedules[epoch]
        index = int(order[place])
        return index, epoch * self.batches_per_epoch[index] + int(ordinals[place])

    def _schedule(self, epoch: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """For each step of an epoch its dataset, and how many steps before it had the same."""
        order = np.repeat(np.arange(len(self.datasets), dtype=np.int16), self.batches_per_epoch)
        order = order[np.argsort(draw(self.seed, SCHEDULE, epoch, np.arange(len(order))))]
        ordinals = np.empty(len(order), np.int64)
        for index, count in enumerate(self.batches_per_epoch):
            ordinals[order == index] = np.arange(count)
        return order, ordinals


def mixture_counts(datasets: Sequence[TrainingDataset]) -> list[int]:
    """Batches of each dataset in an epoch: its own without weights; with weights, so that queries are in their ratio.

    Counts are rounded so that their sum is kept, and no dataset is left out.
    """
    own = [dataset.batches_per_epoch for dataset in datasets]
    if any(dataset.weight is None for dataset in datasets):
        return own
    shares = np.array([(dataset.weight or 0.0) / dataset.batch_size for dataset in datasets])
    exact = shares / shares.sum() * sum(own)
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: sum(own) - counts.sum()]:
        counts[index] += 1
    return np.maximum(counts, 1).tolist()
