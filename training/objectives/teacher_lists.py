"""A teacher's scores of each query's own documents, and which of them can teach.

A softmax needs two documents: a list of one teaches nothing. Absent documents and those without a score (NaN) are left
out of teacher and student alike. Whether a query without a whole scored list is an error or just has no such term is
`Unscored`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812

from drama_models.errors import TrainingError
from training.objectives.similarity import Similarity, comparable, own_products

if TYPE_CHECKING:
    from torch import Tensor

    from training.objectives.labels import Labels

Unscored = Literal["refuse", "skip"]


def check_unscored(unscored: str) -> None:
    """Raises a ValueError for a policy that there is not."""
    if unscored not in ("refuse", "skip"):
        raise ValueError(f"unscored={unscored!r} is not known; use refuse, or skip.")


def taught(labels: Labels, unscored: Unscored) -> tuple[Tensor, Tensor]:
    """The queries whose lists can teach, and which of their documents do.

    Args:
        labels: with teacher scores, (B, N), NaN where there is none.
        unscored: refuse raises for a query with a document that has no score; skip leaves the document out, and the
            query too if fewer than two remain.

    Returns:
        Query numbers (R,), int64, and documents (R, N), bool, at least two in each row.

    Raises:
        TrainingError: refused queries, or lists of one document.
    """
    B, N = labels.scores.shape
    scored = labels.scored
    if N < 2 and (unscored == "refuse" or scored.any()):
        raise TrainingError(
            f"each query came with {N} document, and a list of one teaches nothing; "
            "give each query at least one negative, or leave the listwise objective out."
        )
    enough = scored.sum(1) >= 2
    if unscored == "refuse":
        whole = (scored | labels.absent.view(B, N)).all(1) & enough
        if not whole.all():
            number = int((~whole).nonzero()[0])
            raise TrainingError(
                f"query {number} of the batch has teacher scores for {int(scored[number].sum())} of its "
                f"{int(N - labels.absent.view(B, N)[number].sum())} documents, and its list needs one for each of at "
                "least two; score it with the teacher, leave the query out, or set unscored='skip'."
            )
    rows = enough.nonzero().squeeze(1)
    return rows, scored[rows]


def list_logits(query: Tensor, document: Tensor, rows: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of some queries with their own documents, (R, N), in float32 or better.

    Args:
        query: (B, D).
        document: (B * N, D).
        rows: query numbers, (R,).
        similarity: cosine or dot.
    """
    B, D = query.shape
    own = document.view(B, -1, D)[rows].flatten(0, 1)  # (R * N, D)
    return own_products(*comparable(query[rows], own, similarity))


def log_probabilities(logits: Tensor, documents: Tensor) -> Tensor:
    """Log-softmax over some documents of each list; 0 at the others.

    Args:
        logits: (R, N); anything, NaN too, where `documents` is False.
        documents: (R, N), bool, at least one in each row.
    """
    logits = logits.masked_fill(~documents, -torch.inf)
    return F.log_softmax(logits, dim=1).masked_fill(~documents, 0.0)


def teacher_probabilities(labels: Labels, rows: Tensor, documents: Tensor, temperature: float, like: Tensor) -> Tensor:
    """Softmax of the teacher's scores over some documents of each list, (R, N); 0 at the others.

    Args:
        labels: with the scores.
        rows: query numbers, (R,).
        documents: (R, N), bool.
        temperature: divides the scores.
        like: of the type wanted.
    """
    scores = labels.scores[rows].to(like.dtype) / temperature
    return log_probabilities(scores, documents).exp() * documents


def nothing(query: Tensor, document: Tensor) -> Tensor:
    """Zero that still belongs to the graph, so that every process takes part in the way back."""
    query, document = comparable(query[:0], document[:0], "dot")
    return query.sum() + document.sum()
