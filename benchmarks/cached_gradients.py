"""Memory and time of one training step at growing batch sizes, with cached gradients and without.

    python -m benchmarks.cached_gradients [--out benchmarks/results/cached_gradients.json]

A small Llama with random weights, 2 documents of 32 tokens for each query of 32, InfoNCE with in-batch negatives.
Every setting runs in a process of its own. Memory is the peak of that process beyond what it held before the step. Time
is the processor's, since machines are shared; of the rounds the fastest counts.
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
    record = {
        "benchmark": "cached_gradients",
        "command": "python -m benchmarks.cached_gradients",
        "settings": {"model": MODEL, "tokens": TOKENS, "documents": DOCUMENTS, "chunk": CHUNK, "rounds": ROUNDS},
        "machine": machine_record(),
        "steps": rows,
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
