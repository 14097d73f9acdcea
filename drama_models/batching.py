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


def budget_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions grouped so that a padded batch has at most `max_tokens` tokens, longest first.

    Args:
        lengths: tokens of each text.
        max_tokens: budget of a batch, padding included; a text longer than it gets a batch of its own.

    Yields:
        Positions into `lengths`, each exactly once; every batch is padded to its first text.
    """
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        if not batch:
            longest = lengths[position]
        batch.append(position)
    if batch:
        yield batch
