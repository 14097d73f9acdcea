"""Batches with little padding: texts sorted by length within a window, cut by a budget of tokens."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Item = TypeVar("Item")


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items, the last one shorter; nothing beyond the present one is read ahead."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def budget_batches(lengths: Sequence[int], max_tokens: int, *, packed: bool = False) -> Iterator[list[int]]:
    """Positions grouped so that a batch has at most `max_tokens` tokens, longest first.

    Args:
        lengths: tokens of each text.
        max_tokens: budget of a batch; a text longer than it gets a batch of its own.
        packed: count the texts' own tokens only; else their padding to the batch's first text too.

    Yields:
        Positions into `lengths`, each exactly once.
    """
    batch: list[int] = []
    cost = 0
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        added = lengths[position] if packed or not batch else lengths[batch[0]]
        if batch and cost + added > max_tokens:
            yield batch
            batch, cost, added = [], 0, lengths[position]
        batch.append(position)
        cost += added
    if batch:
        yield batch
