"""Time and memory of a mask-learning step beside a plain training step of the same source model.

    python -m benchmarks.pruning_cost [--steps 4] [--rounds 5] [--out benchmarks/results/pruning_cost.json]

A step is forward, backward and AdamW in float32 on random tokens. Each kind of step holds the model in a process of its
own; they run in turn, and a ratio is taken within a round. Two shapes: that of `demo/source`, where fixed costs weigh
most, and one ten times as large.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES: dict[str, dict[str, int]] = {
    "demo/source": {
        "hidden_size": 192, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32,
        "intermediate_size": 512, "vocab_size": 8192,
    },
    "ten times as large": {
        "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "intermediate_size": 1408, "vocab_size": 8192,
    },
}  # fmt: skip
BATCH_SIZE, SEQUENCE_LENGTH = 8, 256
PLAIN, MASKED = "plain", "masks"


def set_up(kind: str, shape: dict[str, int], steps: int) -> Callable[[], float]:
    """A model with its optimiser; calling what is returned takes the steps and gives the last loss."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pruning.learn_masks import LearnMasksRecipe, mask_optimizer
    from pruning.masked_model import MaskedCausalLM
    from pruning.masks import Masks
    from pruning.shape import BackboneShape, TargetShape

    torch.manual_seed(0)
    settings: dict[str, Any] = {**shape, "tie_word_embeddings": True}
    stock = LlamaForCausalLM(LlamaConfig(**settings))
    model: torch.nn.Module = stock
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(stock.parameters(), lr=1e-4)
    if kind == MASKED:
        source = BackboneShape.of(stock.config)
        half = {name: getattr(source, name) // 2 for name in ("hidden_size", "num_layers", "intermediate_size")}
        target = TargetShape(**half, num_heads=source.num_heads // 2 // source.heads_per_group * source.heads_per_group)
        folder = Path("unused")
        recipe = LearnMasksRecipe(model=folder, corpus=folder, out=folder, target=target)
        model = MaskedCausalLM(stock, Masks(source, source.cut_to(target)), recipe.sparsity_warmup_steps)
        optimizer = mask_optimizer(model, recipe)
    model.train()

    def run() -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            tokens = torch.randint(0, shape["vocab_size"], (BATCH_SIZE, SEQUENCE_LENGTH))
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    run()  # first calls allocate and choose kernels
    return run


def compare(steps: int, rounds: int) -> dict[str, Any]:
    """Both kinds of step on every shape.

    Returns:
        Settings, machine, and for each shape seconds a step, peak memory in MiB, and both ratios of masks to plain.
    """
    shapes = {}
    for name, shape in SHAPES.items():
        measured = interleave({kind: (set_up, (kind, shape, steps)) for kind in (PLAIN, MASKED)}, rounds)
        plain, masked = measured[PLAIN], measured[MASKED]
        ratios = [ours / theirs for ours, theirs in zip(masked.seconds, plain.seconds, strict=True)]
        shapes[name] = {
            "step_seconds": {
                kind: round(statistics.median(found.seconds) / steps, 4) for kind, found in measured.items()
            },
            "peak_mib": {kind: round(found.peak_mib) for kind, found in measured.items()},
            "time_ratio": round(statistics.median(ratios), 3),
            "memory_ratio": round(masked.peak_mib / plain.peak_mib, 3),
        }
    settings = {"steps": steps, "rounds": rounds, "batch_size": BATCH_SIZE, "sequence_length": SEQUENCE_LENGTH}
    return {
        "benchmark": "pruning_cost",
        "settings": settings | {"shapes": SHAPES},
        "machine": machine_record(),
        "shapes": shapes,
    }


def main() -> None:
    """Compare, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="steps in a round; default: 4")
    parser.add_argument("--rounds", type=int, default=5, help="times that each kind of step runs; default: 5")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pruning_cost.json"), help="results file")
    options = parser.parse_args()
    result = compare(options.steps, options.rounds)
    result["command"] = f"python -m benchmarks.pruning_cost --steps {options.steps} --rounds {options.rounds}"
    for name, row in result["shapes"].items():
        print(f"{name}: time x {row['time_ratio']:.2f}, memory x {row['memory_ratio']:.2f}")  # noqa: T201
    write_result(options.out, result)


if __name__ == "__main__":
    main()
