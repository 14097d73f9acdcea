"""Negatives from every device: each process sees the queries and documents of all, and learns for its own.

Embeddings of other processes come detached; a process's own keep their gradient, which is then exactly what one process
with the whole batch would give them. DistributedDataParallel takes the mean over processes where their sum is wanted,
so the gradients of own embeddings are multiplied by the number of processes on their way back. The loss is the same
number everywhere. (The published DRAMA and DRAGON trainer leaves the factor out, and so clips and scales other
gradients than it says.) Terms over a query's own list need no others: gathered and averaged over all queries they give
the same gradient.

Processes may have different numbers of queries, or of documents for each: what is missing is filled up as absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from drama_models.errors import TrainingError
from training.objectives.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Batch = tuple["Tensor", "Tensor", Labels]
# B = queries and N = documents per query of one process; the largest N holds for the joined batch


def gather_batch(query: Tensor, document: Tensor, labels: Labels) -> Batch:
    """The joined batch of all processes, in the order of their ranks; every process must call this.

    Args:
        query: (B, D).
        document: (B * N, D).
        labels: of these.

    Returns:
        Embeddings and labels of all processes, on the device of `query`; just the arguments where there is one process.

    Raises:
        TrainingError: processes with embeddings of different sizes or types, or with in-batch negatives in some only.
    """
    labels.check(query, document)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return query, document, labels
    sizes = _gather_sizes(query, labels)
    queries, documents = (max(size[place] for size in sizes) for place in (0, 1))
    wide = widen((query, document, labels.to(query.device)), documents)
    parts = [_all_gather(_lengthen(tensor, queries)) for tensor in _as_tensors(wide)]
    batches = [
        _as_batch([part[rank][: size[0]] for part in parts], labels.in_batch_negatives)
        for rank, size in enumerate(sizes)
    ]
    batches[dist.get_rank()] = wide
    return join_batches(batches, dist.get_rank())


def join_batches(batches: Sequence[Batch], own: int) -> Batch:
    """One batch from those of all processes, as one of them sees it.

    Args:
        batches: embeddings and labels of each process, all with as many documents for each query.
        own: which of them keeps its gradient, multiplied by the number of processes.

    Returns:
        All queries, all documents, and labels whose positives count rows over all processes.
    """
    whole = len(batches)
    queries, documents = (
        torch.cat([_Amplified.apply(x, whole) if rank == own else x.detach() for rank, x in enumerate(embeddings)])
        for embeddings in ([query for query, _, _ in batches], [document for _, document, _ in batches])
    )
    every = [labels for _, _, labels in batches]
    first = 0
    positives = []
    for labels in every:
        positives.append(labels.positive + first)
        first += len(labels.absent)
    identities = [labels.identity for labels in every if labels.identity is not None]
    joined = Labels(
        positive=torch.cat(positives),
        absent=torch.cat([labels.absent for labels in every]),
        scores=torch.cat([labels.scores for labels in every]),
        identity=torch.cat(identities) if identities else None,
        in_batch_negatives=every[own].in_batch_negatives,
    )
    return queries, documents, joined


def widen(batch: Batch, documents: int) -> Batch:
    """A batch filled up with absent documents.

    Args:
        batch: with N documents for each query.
        documents: how many there are to be, at least N.
    """
    query, document, labels = batch
    B, N = labels.scores.shape
    more = documents - N
    if not more:
        return batch
    filled = Labels(
        positive=labels.positive_column + torch.arange(B, device=labels.positive.device) * documents,
        absent=F.pad(labels.absent.view(B, N), (0, more), value=True).flatten(),
        scores=F.pad(labels.scores, (0, more), value=torch.nan),
        identity=None if labels.identity is None else F.pad(labels.identity.view(B, N), (0, more)).flatten(),
        in_batch_negatives=labels.in_batch_negatives,
    )
    return query, F.pad(document.view(B, N, -1), (0, 0, 0, more)).flatten(0, 1), filled


class _Amplified(torch.autograd.Function):
    """The same tensor; its gradient multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _gather_sizes(query: Tensor, labels: Labels) -> list[list[int]]:
    """B and N of each process, once all agree on everything else."""
    B, N = labels.scores.shape
    must_agree = {
        "embedding size": query.shape[1],
        "bytes in a number of the embeddings": query.element_size(),
        "bytes in a teacher score": labels.scores.element_size(),
        "in-batch negatives": int(labels.in_batch_negatives),
        "document ids": int(labels.identity is not None),
    }
    sizes = [row.tolist() for row in _all_gather(torch.tensor([[B, N, *must_agree.values()]], device=query.device))]
    sizes = [row for (row,) in sizes]
    for place, name in enumerate(must_agree, start=2):
        found = [size[place] for size in sizes]
        if len(set(found)) > 1:
            raise TrainingError(
                f"processes differ in {name}: {found} by rank; train the same model everywhere, and give all processes "
                "parts of one dataset's batch."
            )
    return sizes


def _as_tensors(batch: Batch) -> list[Tensor]:
    """All that is gathered, one row a query."""
    query, document, labels = batch
    B, N = labels.scores.shape
    rows = [query, document.view(B, -1), labels.scores, labels.positive_column, labels.absent.view(B, N)]
    return [x.detach() for x in rows] + ([] if labels.identity is None else [labels.identity.view(B, N)])


def _as_batch(rows: Sequence[Tensor], in_batch_negatives: bool) -> Batch:
    """What `_as_tensors` took apart."""
    query, document, scores, column, absent, *identity = rows
    B, N = scores.shape
    labels = Labels(
        positive=column + torch.arange(B, device=column.device) * N,
        absent=absent.flatten(),
        scores=scores,
        identity=identity[0].flatten() if identity else None,
        in_batch_negatives=in_batch_negatives,
    )
    return query, document.view(B * N, -1), labels


def _lengthen(rows: Tensor, length: int) -> Tensor:
    """As many rows, the last of them zero."""
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


def _all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process, all of one shape; as bytes, since not every backend knows every type."""
    raw = tensor.contiguous().view(torch.uint8)
    parts = [torch.empty_like(raw) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, raw)
    return [part.view(tensor.dtype) for part in parts]
