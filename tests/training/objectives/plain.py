"""The objectives as slow, plain expressions: one pair and one exponential at a time, in Python's own numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor


def score(query: Tensor, document: Tensor, *, dot: bool = False) -> float:
    """Cosine or dot product of two vectors (D,)."""
    product = sum(float(a) * float(b) for a, b in zip(query, document, strict=True))
    lengths = math.sqrt(sum(float(a) ** 2 for a in query)) * math.sqrt(sum(float(b) ** 2 for b in document))
    return product if dot else product / lengths


def softmax(values: Sequence[float]) -> list[float]:
    """Each value's exponential over the sum of all."""
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def info_nce(
    query: Tensor,
    document: Tensor,
    positive: Sequence[int],
    counted: Sequence[Iterable[int]],
    temperature: float,
    *,
    dot: bool = False,
) -> float:
    """Mean over queries of -log of the positive's share among the documents counted for that query."""
    total = 0.0
    for number, q in enumerate(query):
        weight = {row: math.exp(score(q, document[row], dot=dot) / temperature) for row in counted[number]}
        total -= math.log(weight[positive[number]] / sum(weight.values()))
    return total / len(query)


def divergence(teacher: Sequence[float], student: Sequence[float]) -> float:
    """KL of two distributions."""
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
