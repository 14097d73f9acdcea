"""Gradients of a batch that does not fit in memory, exactly: each chunk is encoded twice, and kept not even once.

The loss of in-batch negatives needs all embeddings at once, but embeddings are small; what does not fit is what the
encoder keeps for its way back. So chunks are first encoded without it. Once the loss has given each embedding its
gradient, each chunk is encoded again, under the random state and autocast of the first time so that dropout draws the
same, and sent back at once. Memory is that of one chunk. Gao et al., 2021, arXiv 2101.06983.

The embeddings come out of one autograd function, so the loss is an ordinary one: scaling it, gathering over devices and
accumulating steps work as ever. Under DistributedDataParallel only the last chunk's way back synchronises.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

Chunk = TypeVar("Chunk")


def cached_loss(
    encode: Callable[[Chunk], Tensor],
    query_chunks: Sequence[Chunk],
    document_chunks: Sequence[Chunk],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    model: nn.Module | None = None,
) -> Tensor:
    """Loss of a whole batch whose `backward()` replays the chunks one by one.

    Args:
        encode: embeds a chunk, (n, D); called twice for each.
        query_chunks: what `encode` takes, in order; together B queries.
        document_chunks: likewise, together B * N documents.
        loss: of all query embeddings (B, D) and all document embeddings (B * N, D).
        model: what `encode` calls, if that is a DistributedDataParallel module. Processes may have different numbers of
            chunks.

    Returns:
        What `loss` returned.

    Raises:
        ValueError: no chunks of one kind.
    """
    return loss(*cached_embeddings(encode, query_chunks, document_chunks, model=model))


def cached_embeddings(
    encode: Callable[[Chunk], Tensor],
    query_chunks: Sequence[Chunk],
    document_chunks: Sequence[Chunk],
    *,
    model: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Query (B, D) and document embeddings (B * N, D) whose way back replays the chunks; as `cached_loss`."""
    if not query_chunks or not document_chunks:
        raise ValueError(
            f"{len(query_chunks)} chunks of queries and {len(document_chunks)} of documents came; "
            "pass at least one of each."
        )
    # an input that needs a gradient, since the parameters behind the embeddings are out of sight here
    anchor = torch.zeros((), requires_grad=True)
    return _Cached.apply(anchor, _Replay(encode, model), query_chunks, document_chunks)


class RandomState:
    """State of the random generators of the CPU and of every CUDA device, as it is now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draw from this state; afterwards the generators go on as if nothing had been drawn."""
        with torch.random.fork_rng(devices=range(len(self._cuda))):
            torch.set_rng_state(self._cpu)
            if self._cuda:
                torch.cuda.set_rng_state_all(self._cuda)
            yield


class _Encoded(NamedTuple):
    """A chunk that was encoded once, and what it takes to encode it again just so."""

    chunk: Any
    rows: int
    random: RandomState


class _Cached(torch.autograd.Function):
    """All chunks as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, _: Tensor, replay: _Replay[Chunk], query_chunks: Sequence[Chunk], document_chunks: Sequence[Chunk]
    ) -> tuple[Tensor, Tensor]:
        ctx.replay = replay
        ctx.queries, query = replay.first_pass(query_chunks)
        ctx.documents, document = replay.first_pass(document_chunks)
        return query, document

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        queries, documents = (
            list(zip(encoded, gradient.split([each.rows for each in encoded]), strict=True))
            for encoded, gradient in zip((ctx.queries, ctx.documents), gradients, strict=True)
        )
        ctx.replay.send_back(queries, documents)
        return None, None, None, None


class _Replay(Generic[Chunk]):
    """Encodes chunks without keeping anything, and later again with their gradients."""

    def __init__(self, encode: Callable[[Chunk], Tensor], model: nn.Module | None) -> None:
        self.encode = encode
        self.parallel = model if isinstance(model, DistributedDataParallel) else None
        kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        self.autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]

    def first_pass(self, chunks: Sequence[Chunk]) -> tuple[list[_Encoded], Tensor]:
        """What each chunk takes to be encoded again, and the embeddings of all."""
        encoded, embeddings = [], []
        for chunk in chunks:
            random = RandomState()
            with torch.no_grad(), self._autocast():
                embeddings.append(self.encode(chunk))
            encoded.append(_Encoded(chunk, len(embeddings[-1]), random))
        return encoded, torch.cat(embeddings)

    def send_back(self, queries: list[tuple[_Encoded, Tensor]], documents: list[tuple[_Encoded, Tensor]]) -> None:
        """Encode each chunk again and send its gradient (rows, D) to the parameters at once.

        Of two encoders in one parallel module the last chunk of documents reaches only one. A module that does not look
        for unused parameters would wait for the other for ever, so the last chunks of both kinds then go back together.
        """
        last = [documents.pop()]
        if self.parallel is not None and not self.parallel.find_unused_parameters:
            last.insert(0, queries.pop())
        for encoded, gradient in (*queries, *documents):
            with self._unsynchronised():
                _backward([self._again(encoded)], [gradient])
        with self._unsynchronised():
            embeddings = [self._again(encoded) for encoded, _ in last[:-1]]
        embeddings.append(self._again(last[-1][0]))
        _backward(embeddings, [gradient for _, gradient in last])

    def _again(self, encoded: _Encoded) -> Tensor:
        with encoded.random.restored(), torch.enable_grad(), self._autocast():
            return self.encode(encoded.chunk)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """Autocast as it was at the first pass, whose weights cast without gradients must not be found in its cache."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    @contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        with self.parallel.no_sync() if self.parallel is not None else nullcontext():
            yield


def _backward(embeddings: list[Tensor], gradients: list[Tensor]) -> None:
    """Backward from the embeddings that have parameters behind them: a frozen encoder's have none."""
    trained = [pair for pair in zip(embeddings, gradients, strict=True) if pair[0].requires_grad]
    if trained:
        torch.autograd.backward([embedding for embedding, _ in trained], [gradient for _, gradient in trained])
