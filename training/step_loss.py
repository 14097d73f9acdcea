"""From a tokenised batch to its loss: encode at once or chunk by chunk, join the devices, call the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from training.cached_gradients import cached_embeddings
from training.cross_device import gather_batch
from training.encoders import embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from training.objectives import Labels, Objective

Chunk = tuple[Literal["query", "document"], list["Tensor"]]


class StepLoss(nn.Module):
    """The loss of a step.

    Args:
        model: what is trained. It is held here because the stock trainer optimises the parameters of its loss.
        objective: of all embeddings of a batch.
        chunk_tokens: tokens encoded at a time, with gradients through a cache; None encodes a batch at once.
        cross_device_negatives: whether the batches of all processes are joined.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        objective: Objective,
        *,
        chunk_tokens: int | None = None,
        cross_device_negatives: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective, self.chunk_tokens = objective, chunk_tokens
        self.joins_devices = cross_device_negatives

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """Loss of one batch of `StepData`, a scalar."""

        def encode(chunk: Chunk) -> Tensor:
            kind, texts = chunk
            return embed(self.model, texts, kind)

        if self.chunk_tokens is None:
            query, document = encode(("query", inputs["query"])), encode(("document", inputs["document"]))
        else:
            queries: list[Chunk] = [("query", texts) for texts in token_chunks(inputs["query"], self.chunk_tokens)]
            documents: list[Chunk] = [
                ("document", texts) for texts in token_chunks(inputs["document"], self.chunk_tokens)
            ]
            query, document = cached_embeddings(encode, queries, documents, model=self.model)
        labels: Labels = inputs["facts"].to(query.device)
        if self.joins_devices:
            query, document, labels = gather_batch(query, document, labels)
        return self.objective(query, document, labels)


def token_chunks(texts: Sequence[Tensor], max_tokens: int) -> list[list[Tensor]]:
    """Consecutive texts cut into portions of at most `max_tokens` tokens; a longer text is a portion of its own."""
    chunks: list[list[Tensor]] = []
    filled = 0
    for text in texts:
        if not chunks or filled + len(text) > max_tokens:
            chunks.append([])
            filled = 0
        chunks[-1].append(text)
        filled += len(text)
    return chunks
