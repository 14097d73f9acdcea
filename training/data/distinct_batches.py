"""Batches of one dataset without a document twice: which queries come together, and with which of their documents.

An epoch is a shuffled list of queries cut into windows of a few batches. Within a window, batches are filled in turn:
a query draws a positive and negatives in random order from its pools, passing over documents that the batch has; one
without a positive left, or without the negative that a listwise objective needs, waits for the next batch. What a
window lacks at its end is filled with queries from elsewhere in the dataset. So a batch is a function of seed, epoch
and place alone, and one window is all that is held.

A document counts as there when its content is, whatever its id. Where other queries' documents are no negatives
(classification, clustering: every row has one of few labels), and where lists may share documents, only a query's own
documents must differ.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from drama_models.errors import CollectionError
from training.data.batches import PlannedBatch, lay_out
from training.data.draws import draw, permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.data.datasets import TrainingDataset

WINDOW_QUERIES = 1 << 15
FEWEST_BATCHES, MOST_BATCHES = 2, 64
FILLING_ROUNDS = 64  # batches of other queries that are tried before a batch is given up
TEACHER, POSITIVES, NEGATIVES, REPEATS, ORDER, FILLERS = range(6)  # kinds of draws, each with numbers of its own


def batches_per_window(dataset: TrainingDataset) -> int:
    """Batches that are planned together."""
    return max(FEWEST_BATCHES, min(MOST_BATCHES, WINDOW_QUERIES // dataset.batch_size))


class Candidates:
    """Queries with the documents they may bring, in the order in which they are tried.

    Args:
        dataset: that they belong to.
        rows: the queries, (n,).
        iteration: of progressive supervision.
        key: seed and epoch.
    """

    def __init__(self, dataset: TrainingDataset, rows: NDArray[np.int64], iteration: int, key: tuple[int, ...]) -> None:
        self._dataset, self._key = dataset, key
        self.rows: list[int] = rows.tolist()
        self.query_hashes: list[int] = dataset.labels.query_hashes(rows).tolist()
        pools = dataset.labels.pools(rows, iteration, *key, TEACHER)
        self._positives = self._shuffled(pools.positives, pools.positive_scores, POSITIVES)
        self._negatives = self._shuffled(pools.negatives, pools.negative_scores, NEGATIVES)

    def group(self, index: int, taken: set[int]) -> tuple[list[int], list[float], set[int]] | None:
        """Documents, scores and content hashes of one query, none of them in `taken`; None where too few are left."""
        documents, scores, hashes, starts = self._positives
        places = range(starts[index], starts[index + 1])
        positive = next((place for place in places if hashes[place] not in taken), None)
        if positive is None:
            return None
        chosen, values, own = [documents[positive]], [scores[positive]], {hashes[positive]}
        documents, scores, hashes, starts = self._negatives
        for place in range(starts[index], starts[index + 1]):
            if len(chosen) == self._dataset.group_size:
                break
            if hashes[place] not in taken and hashes[place] not in own:
                own.add(hashes[place])
                chosen.append(documents[place])
                values.append(scores[place])
        if len(chosen) < self._dataset.fewest_documents:
            return None
        if self._dataset.repeat_negatives and 1 < len(chosen) < self._dataset.group_size:
            again = self._repeated(self.rows[index], len(chosen) - 1)
            chosen = [chosen[0], *(chosen[1 + place] for place in again)]
            values = [values[0], *(values[1 + place] for place in again)]
        return chosen, values, own

    @property
    def without_positives(self) -> int:
        """Queries for which the teacher that was drawn has no positive."""
        _, _, _, starts = self._positives
        return sum(start == end for start, end in pairwise(starts))

    def _repeated(self, row: int, available: int) -> list[int]:
        """Places of negatives drawn without replacement from just enough copies of those there are."""
        wanted = self._dataset.group_size - 1
        copies = -(-wanted // available) * available
        order = np.argsort(draw(*self._key, REPEATS, row, np.arange(copies)))
        return (order[:wanted] % available).tolist()

    def _shuffled(
        self, lists: list[NDArray[np.int64]], scores: list[NDArray[np.float32]], kind: int
    ) -> tuple[list[int], list[float], list[int], list[int]]:
        """All documents in a row, each query's in random order: documents, scores, hashes, and the queries' starts."""
        lengths = [len(documents) for documents in lists]
        owner = np.repeat(np.arange(len(lists)), lengths)
        starts = np.cumsum([0, *lengths])
        place = np.arange(len(owner)) - starts[owner]
        order = np.lexsort((draw(*self._key, kind, np.array(self.rows, np.int64)[owner], place), owner))
        documents = np.concatenate(lists)[order]
        hashes = self._dataset.documents.content_hashes(documents)
        return documents.tolist(), np.concatenate(scores)[order].tolist(), hashes.tolist(), starts.tolist()


class _Batch:
    """A batch while it is filled."""

    def __init__(self, dataset: TrainingDataset) -> None:
        self.dataset = dataset
        self.rows: list[int] = []
        self.documents: list[list[int]] = []
        self.scores: list[list[float]] = []
        self._taken: set[int] = set()
        self._queries: set[int] = set()

    @property
    def full(self) -> bool:
        return len(self.rows) == self.dataset.batch_size

    def add(self, candidates: Candidates, index: int) -> bool:
        """Take a query in if it fits."""
        in_batch = self.dataset.task.in_batch_negatives
        same = candidates.query_hashes[index] if in_batch else candidates.rows[index]
        group = None if same in self._queries else candidates.group(index, self._taken)
        if group is None:
            return False
        documents, scores, hashes = group
        self.documents.append(documents)
        self.scores.append(scores)
        self.rows.append(candidates.rows[index])
        self._queries.add(same)
        if in_batch and not self.dataset.shared_documents:
            self._taken |= hashes
        return True

    def planned(self) -> PlannedBatch:
        size = self.dataset.group_size
        documents, _, _ = lay_out(self.documents, size, -1)
        scores, _, _ = lay_out(self.scores, size, np.nan)
        return PlannedBatch(
            queries=np.array(self.rows, np.int64),
            documents=np.array(documents, np.int64).reshape(-1, size),
            scores=np.array(scores, np.float32).reshape(-1, size),
        )


def plan_window(
    dataset: TrainingDataset, window: int, *, seed: int, epoch: int, iteration: int = 1
) -> list[PlannedBatch]:
    """The batches of one window of an epoch.

    Args:
        dataset: to draw from.
        window: its number in the epoch.
        seed: of the run.
        epoch: pass over the dataset; another one has another order and other draws.
        iteration: of progressive supervision.

    Raises:
        CollectionError: the dataset has too few distinct documents for a batch.
    """
    key = (seed, dataset.key, epoch)
    first = window * batches_per_window(dataset)
    last = min(first + batches_per_window(dataset), dataset.batches_per_epoch)
    places = np.arange(first * dataset.batch_size, last * dataset.batch_size)
    candidates = Candidates(dataset, permute(places, len(dataset), *key, ORDER), iteration, key)
    waiting = list(range(len(candidates.rows)))
    batches: list[PlannedBatch] = []
    for _ in range(first, last):
        batch, later = _Batch(dataset), []
        for position, index in enumerate(waiting):
            if batch.full:
                later += waiting[position:]
                break
            if not batch.add(candidates, index):
                later.append(index)
        waiting = later
        if not batch.full:
            _fill(batch, (*key, window, len(batches)), iteration, key)
        batches.append(batch.planned())
    return batches


def _fill(batch: _Batch, place: tuple[int, ...], iteration: int, key: tuple[int, ...]) -> None:
    """Complete a batch with queries from anywhere in the dataset."""
    dataset = batch.dataset
    tries, without = min(len(dataset), FILLING_ROUNDS * dataset.batch_size), 0
    for start in range(0, tries, dataset.batch_size):
        places = np.arange(start, min(start + dataset.batch_size, tries))
        candidates = Candidates(dataset, permute(places, len(dataset), *place, FILLERS), iteration, key)
        without += candidates.without_positives
        for index in range(len(candidates.rows)):
            if batch.full:
                return
            batch.add(candidates, index)
    if not batch.full:
        advice = ", or in_batch_negatives: false" if dataset.task.in_batch_negatives else ""
        if without:
            advice += f", or give each teacher's run more queries: {without:,} of {tries:,} have no positive in them"
        raise CollectionError(
            f"Dataset {dataset.name!r} cannot fill a batch of {dataset.batch_size:,} queries with distinct documents: "
            f"{len(batch.rows):,} fit; set a smaller batch_size{advice}."
        )
