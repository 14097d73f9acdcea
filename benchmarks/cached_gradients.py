"""Memory and time of one training step at growing batch sizes, with cached gradients and without.

    python -m benchmarks.cached_gradients [--out benchmarks/results/cached_gradients.json]

A small Llama with random weights, 2 documents of 32 tokens for each query of 32, InfoNCE with in-batch negatives.
Every setting runs in a process of its own. Memory is the peak of that process beyond what it held before the step. Time
is the processor's, since machines are shared; of the rounds the fastest counts. The loss itself is measured alone at
4,096 queries with 20 documents each (the batch of arXiv 2502.19712), whose scores would fill 1,280 MiB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL: dict[str, Any] = {
    "vocab_size": 2000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 192, "attention_dropout": 0.1,
}  # fmt: skip
TOKENS, DOCUMENTS, CHUNK, ROUNDS = 32, 2, 64, 3
BATCH_SIZES = (64, 128, 256, 512, 1024)
LOSS_QUERIES, LOSS_DOCUMENTS, LOSS_DIM = 4096, 20, 128


def set_up(queries: int, cached: bool) -> Callable[[], dict[str, float]]:
    """Model and token ids; calling what is returned takes one step.

    Args:
        queries: batch size.
        cached: chunks of `CHUNK` texts with cached gradients, or all texts at once.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    from benchmarks.interleaved import peak_mib
    from training.cached_gradients import cached_loss
    from training.objectives import Contrastive, Labels

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaModel(LlamaConfig(**MODEL)).train()
    query, document = (torch.randint(2000, (count, TOKENS)) for count in (queries, queries * DOCUMENTS))
    labels = Labels.of(
        positives=range(0, queries * DOCUMENTS, DOCUMENTS),
        absent=[False] * queries * DOCUMENTS,
        scores=[[0.0] * DOCUMENTS] * queries,
    )

    def encode(ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.mean(1)

    def loss(query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        return Contrastive()(query, document, labels)

    chunk = CHUNK if cached else queries * DOCUMENTS
    cached_loss(encode, [query[:1]], [document[:1]], lambda q, d: (q * d).sum()).backward()  # loads what loads once
    before = peak_mib()

    times = []

    def run() -> dict[str, float]:
        began = time.process_time()
        model.zero_grad()
        if cached:
            value = cached_loss(encode, query.split(chunk), document.split(chunk), loss)
        else:
            value = loss(encode(query), encode(document))
        value.backward()
        times.append(time.process_time() - began)
        return {"peak_beyond_mib": peak_mib() - before, "seconds": min(times)}

    return run


def set_up_loss() -> Callable[[], dict[str, float]]:
    """Embeddings of a very large batch; calling what is returned goes through the specialisation loss and back."""
    import torch

    from benchmarks.interleaved import peak_mib
    from training.objectives import Labels
    from training.recipe import ObjectiveRecipe

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = LOSS_QUERIES * LOSS_DOCUMENTS
    labels = Labels.of(
        positives=range(0, rows, LOSS_DOCUMENTS),
        absent=[False] * rows,
        scores=torch.rand(LOSS_QUERIES, LOSS_DOCUMENTS).tolist(),
        document_ids=[str(row % 70_000) for row in range(rows)],
    )
    query, document = (torch.randn(count, LOSS_DIM).requires_grad_() for count in (LOSS_QUERIES, rows))
    objective = ObjectiveRecipe.specialisation().build()
    before = peak_mib()

    def run() -> dict[str, float]:
        began = time.process_time()
        objective(query, document, labels).backward()
        return {"peak_beyond_mib": peak_mib() - before, "seconds": time.process_time() - began}

    return run


def measure(queries: int, cached: bool) -> dict[str, Any]:
    """Peak memory and fastest step of one setting."""
    name = f"{queries} queries, {'cached' if cached else 'un-cached'}"
    measured = interleave({name: (set_up, (queries, cached))}, ROUNDS)[name]
    return {
        "queries": queries,
        "cached": cached,
        "peak_beyond_mib": round(measured.result["peak_beyond_mib"], 1),
        "processor_seconds": round(measured.result["seconds"], 2),
    }


def main() -> None:
    """Measure, print, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/cached_gradients.json"), help="results file"
    )
    options = parser.parse_args()
    rows = [measure(queries, cached) for queries in BATCH_SIZES for cached in (True, False)]
    cached, plain = ([row for row in rows if row["cached"] is kind] for kind in (True, False))
    large = interleave({"loss alone": (set_up_loss, ())}, 1)["loss alone"].result
    record = {
        "benchmark": "cached_gradients",
        "command": "python -m benchmarks.cached_gradients",
        "settings": {"model": MODEL, "tokens": TOKENS, "documents": DOCUMENTS, "chunk": CHUNK, "rounds": ROUNDS},
        "machine": machine_record(),
        "steps": rows,
        "loss_alone": {
            "queries": LOSS_QUERIES,
            "documents": LOSS_DOCUMENTS,
            "dimensions": LOSS_DIM,
            "peak_beyond_mib": round(large["peak_beyond_mib"]),
            "score_matrix_mib": LOSS_QUERIES**2 * LOSS_DOCUMENTS * 4 // 2**20,
            "processor_seconds": round(large["seconds"], 1),
        },
        "growth_of_memory_from_smallest_to_largest_batch": {
            "cached": round(cached[-1]["peak_beyond_mib"] / cached[0]["peak_beyond_mib"], 2),
            "uncached": round(plain[-1]["peak_beyond_mib"] / plain[0]["peak_beyond_mib"], 2),
        },
        "time_over_uncached": [
            round(with_cache["processor_seconds"] / without["processor_seconds"], 2)
            for with_cache, without in zip(cached, plain, strict=True)
        ],
    }
    write_result(options.out, record)
    for row in rows:
        kind = "cached" if row["cached"] else "un-cached"
        print(f"{row['queries']:5} queries | {kind:9} | {row['peak_beyond_mib']:8} MiB | {row['processor_seconds']} s")  # noqa: T201


if __name__ == "__main__":
    main()
