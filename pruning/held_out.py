"""How well a model predicts each domain's held-out text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pruning.mixture import HeldOutSequences
from pruning.packing import IGNORED

if TYPE_CHECKING:
    from pruning.corpus import Corpus


@torch.no_grad()
def held_out_figures(
    model: torch.nn.Module,
    corpus: Corpus,
    *,
    length: int,
    batch_size: int,
    limit: int,
    separate_documents: bool = False,
) -> dict[str, dict[str, float]]:
    """Loss (nats a token), perplexity and bits per byte on each domain's held-out text.

    Bits per byte are the loss over the ratio of bytes to tokens, so models with different tokenizers can be compared.

    Args:
        model: a causal language model that returns a loss; it is evaluated in eval mode where it is.
        corpus: tokenised text.
        length: tokens in a sequence.
        batch_size: sequences evaluated at a time.
        limit: sequences of each domain, at most.
        separate_documents: as in `pruning.packing.packed`; the start of a document is then not predicted.

    Returns:
        By domain: loss, perplexity, bits_per_byte.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    figures = {}
    for domain, splits in corpus.domains.items():
        held_out = splits["held_out"]
        data = HeldOutSequences(corpus, domain, length, limit, separate_documents=separate_documents)
        total, tokens = 0.0, 0
        for start in range(0, len(data), batch_size):
            rows = [data[index] for index in range(start, min(start + batch_size, len(data)))]
            batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
            predicted = int((batch["labels"][:, 1:] != IGNORED).sum())
            # with a cache transformers would not look for the ends of documents in the positions
            total += model(**batch, use_cache=False).loss.item() * predicted
            tokens += predicted
        loss = total / tokens
        predicted_tokens = held_out.tokens - (held_out.documents if separate_documents else 0)
        bits = loss / math.log(2) * predicted_tokens / held_out.text_bytes
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # infinite where math.exp would fail
        figures[domain] = {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits}
    model.train(was_training)
    return figures
