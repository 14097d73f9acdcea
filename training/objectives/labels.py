"""What is known about the documents of a batch: which is right, which only fill it, what the teacher said.

The same facts as in a `TextBatch`, as tensors. They are checked where they are made, on the CPU, so that a wrong batch
is an error in words before anything is encoded; moved to an accelerator they are not read again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch

from drama_models.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# B = queries, N = documents per query, M = B * N documents of the batch, each query's documents in turn


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of B queries with N documents each.

    Raises:
        TrainingError: shapes that do not belong together, a positive that is absent or another query's, an infinite
            score.
    """

    positive: Tensor
    """Row of each query's positive among the documents, (B,), int64."""
    absent: Tensor
    """Documents that only fill the batch, (M,), bool. They count for no query."""
    scores: Tensor
    """Teacher scores of each query's own documents, (B, N), float32 or float64; NaN where the teacher gave none."""
    identity: Tensor | None = None
    """Equal numbers for equal documents, (M,), int64; None if no document occurs twice."""
    in_batch_negatives: bool = True
    """Whether other queries' documents count as negatives."""

    def __post_init__(self) -> None:
        B, N = self.scores.shape
        wanted = {"positive": (B,), "absent": (B * N,), "identity": (B * N,)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise TrainingError(
                    f"{name} has shape {tuple(value.shape)}, but scores of shape {(B, N)} mean {B} queries with {N} "
                    f"documents each; pass {name} with shape {shape}."
                )
        if self.positive.device.type == "cpu":
            self._check_values()

    @classmethod
    def of(
        cls,
        *,
        positives: Sequence[int],
        absent: Sequence[bool],
        scores: Sequence[Sequence[float]],
        document_ids: Sequence[str] | None = None,
        in_batch_negatives: bool = True,
    ) -> Labels:
        """Labels from the lists of a `TextBatch`.

        Args:
            positives: B rows among the documents.
            absent: M flags.
            scores: B lists of N teacher scores, NaN where there is none.
            document_ids: M ids, by which a document is recognised when it occurs twice, on any rank.
            in_batch_negatives: whether other queries' documents count as negatives.

        Raises:
            TrainingError: as the class.
        """
        identity = None if document_ids is None else torch.tensor([identity_of(key) for key in document_ids])
        return cls(
            positive=torch.tensor(positives, dtype=torch.int64),
            absent=torch.tensor(absent, dtype=torch.bool),
            # double, so that a score of exactly a share of the positive's is not rounded past it
            scores=torch.tensor(scores, dtype=torch.float64),
            identity=identity,
            in_batch_negatives=in_batch_negatives,
        )

    @property
    def positive_column(self) -> Tensor:
        """Place of each query's positive among its own documents, (B,), int64."""
        B, N = self.scores.shape
        return self.positive - torch.arange(B, device=self.positive.device) * N

    @property
    def scored(self) -> Tensor:
        """Own documents that the teacher scored, (B, N), bool."""
        return ~(self.scores.isnan() | self.absent.view(self.scores.shape))

    def to(self, device: torch.device | str) -> Labels:
        """The same labels on another device."""
        scores = self.scores.float() if torch.device(device).type == "mps" else self.scores  # which has no float64
        return replace(
            self,
            positive=self.positive.to(device),
            absent=self.absent.to(device),
            scores=scores.to(device),
            identity=None if self.identity is None else self.identity.to(device),
        )

    def check(self, query: Tensor, document: Tensor) -> None:
        """Whether these are the labels of these embeddings; reads shapes only.

        Raises:
            TrainingError: another number of queries or documents, or embeddings of two sizes.
        """
        B, N = self.scores.shape
        if query.shape[:-1] != (B,) or document.shape[:-1] != (B * N,):
            raise TrainingError(
                f"labels of {B} queries with {N} documents each came with query embeddings {tuple(query.shape)} and "
                f"document embeddings {tuple(document.shape)}; pass ({B}, D) and ({B * N}, D)."
            )
        if query.shape[-1] != document.shape[-1]:
            raise TrainingError(
                f"queries have {query.shape[-1]} dimensions and documents {document.shape[-1]}; "
                "train two encoders of the same embedding size."
            )

    def _check_values(self) -> None:
        N = self.scores.shape[1]
        column = self.positive_column
        wrong = (column < 0) | (column >= N)
        if wrong.any():
            number = int(wrong.nonzero()[0])
            raise TrainingError(
                f"the positive of query {number} is row {int(self.positive[number])}, but its own documents are rows "
                f"{number * N} to {number * N + N - 1}; count rows over the whole batch."
            )
        if self.absent[self.positive].any():
            number = int(self.absent[self.positive].nonzero()[0])
            raise TrainingError(f"the positive of query {number} is marked absent; leave queries without positive out.")
        if self.scores.isinf().any():
            number = int(self.scores.isinf().any(1).nonzero()[0])
            raise TrainingError(
                f"a teacher score of query {number} is infinite; leave the document out, or give NaN for no score."
            )


def identity_of(document_id: str) -> int:
    """A number for an id that is the same in every process and run (64 bits of BLAKE2b)."""
    return int.from_bytes(blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), signed=True)
