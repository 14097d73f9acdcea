"""Hard negatives: what a teacher ranks high for a query without being a positive."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from training.examples import TrainingExample


class Teacher(Protocol):
    """Anything that ranks documents for queries, such as `drama_models.BM25`."""

    def search(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """Document ids and scores of each query, best first."""
        ...


def mine_negatives(
    examples: Iterable[TrainingExample],
    teacher: Teacher,
    *,
    name: str,
    first_rank: int,
    last_rank: int,
    show_progress: bool = False,
) -> Iterator[TrainingExample]:
    """Give each example the documents at the teacher's ranks `first_rank` to `last_rank` as hard negatives.

    Args:
        examples: with positives; their own negatives are replaced.
        teacher: ranks the documents.
        name: recorded as the example's teacher.
        first_rank: counted from 1, positives not counted. Above 1, since the very top often answers the query too.
        last_rank: inclusive.
        show_progress: a progress bar on the terminal.

    Raises:
        ValueError: the ranks do not form a window.
    """
    if not 1 <= first_rank <= last_rank:
        raise ValueError(f"Ranks {first_rank} to {last_rank} are no window; set 1 <= first_rank <= last_rank.")
    for example in tqdm(examples, desc="mine", unit=" queries", disable=None if show_progress else True):
        (hits,) = teacher.search([example.query], last_rank + len(example.positive_ids))
        others = [document for document, _ in hits if document not in example.positive_ids]
        yield replace(example, negative_ids=others[first_rank - 1 : last_rank], teacher=name)
