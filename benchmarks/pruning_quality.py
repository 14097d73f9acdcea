"""What learned masks are worth: four ways to a small model from `demo/source`, with the same number of training tokens.

    python -m benchmarks.pruning_quality [--seeds 3] [--steps 120 240 480] [--out FILE.json]

learned: the demo's mask learning, slicing and recovery. magnitude: evenly spaced layers, and the heads, units and
coordinates with the largest weights, equally many in each layer. random choice: the same numbers, drawn. random start:
random weights in the target's shape. A budget counts tokens of both stages: what mask learning reads is taken off the
recovery of `learned`. Reads the demo's corpus (`make demo` first); finished runs are kept in the results file and not
run again. A plot is written beside it. Every core runs one method at a time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import machine_record
from demo.stages import GATES, RECIPES, SOURCE
from drama_models.errors import CorpusError
from drama_models.folders import atomic_file
from drama_models.progress import hide_loading_bars
from drama_models.recipe import load_recipe
from pruning.learn_masks import LearnMasksRecipe, learn_masks, load_masks
from pruning.masks import mask_shapes
from pruning.recover import RecoverRecipe, recover
from pruning.shape import BackboneShape
from pruning.slicing import slice_folder

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("learned", "magnitude", "random choice", "random start")
DOMAIN = "documentation"


def chosen_masks(scores: dict[str, Tensor], target: BackboneShape, layers: Tensor) -> dict[str, Tensor]:
    """Masks of ones and zeros: the given layers, and in every layer the units with the highest scores.

    Args:
        scores: of each gate by dimension, shapes as in `pruning.masks`.
        target: shape to keep.
        layers: indices of the layers to keep.
    """
    keep = {"hidden": target.hidden_size, "head": target.num_kv_heads, "intermediate": target.intermediate_size}
    values = {"layer": torch.zeros_like(scores["layer"]).index_fill(0, layers, 1.0)}
    for name, count in keep.items():
        top = scores[name].topk(count, dim=-1).indices
        values[name] = torch.zeros_like(scores[name]).scatter(-1, top, 1.0)
    return values


def magnitudes(shape: BackboneShape) -> dict[str, Tensor]:
    """Sum of squares of all weights that each gate would remove."""
    state = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).state_dict()
    scores = {name: torch.zeros(size) for name, size in mask_shapes(shape).items()}
    scores["hidden"] += state["model.embed_tokens.weight"].square().sum(0)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        squares = {
            name.removeprefix(prefix).rpartition(".")[0]: weight.square()
            for name, weight in state.items()
            if name.startswith(prefix) and weight.ndim == 2
        }
        for name, square in squares.items():
            is_output = name.endswith(("o_proj", "down_proj"))
            scores["hidden"] += square.sum(1 if is_output else 0)
            units = square.sum(0 if is_output else 1)
            if name.startswith("self_attn"):
                scores["head"][layer] += units.unflatten(0, (shape.num_kv_heads, -1)).sum(1)
            else:
                scores["intermediate"][layer] += units
    return scores


def write_start(method: str, out: Path, seed: int) -> None:
    """Folder in the target's shape by one of the methods that read no text."""
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    target = source.cut_to(load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml").target)
    generator = torch.Generator().manual_seed(seed)
    if method == "magnitude":
        layers = torch.linspace(0, source.num_layers - 1, target.num_layers).round().long()
        slice_folder(SOURCE, chosen_masks(magnitudes(source), target, layers), out, {"method": method})
        return
    scores = {name: torch.rand(size, generator=generator) for name, size in mask_shapes(source).items()}
    layers = torch.randperm(source.num_layers, generator=generator)[: target.num_layers].sort().values
    slice_folder(SOURCE, chosen_masks(scores, target, layers), out, {"method": method, "seed": seed})
    if method == "random start":
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out)).save_pretrained(out)
        AutoTokenizer.from_pretrained(SOURCE).save_pretrained(out)


def run(method: str, seed: int, budgets: list[int]) -> dict[str, Any]:
    """Held-out perplexity right after slicing, and at every budget of recovery-sized steps."""
    hide_loading_bars()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        learn = replace(load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml"), out=work / "masks", seed=seed)
        again = replace(load_recipe(RecoverRecipe, RECIPES / "recover.yaml"), model=work / "start", seed=seed)
        spent = 0
        if method == "learned":
            learn_masks(learn)
            slice_folder(learn.out, load_masks(learn.out, gates=GATES), work / "start", {})
            tokens = learn.steps * learn.batch_size * learn.sequence_length
            spent = tokens // (again.batch_size * again.sequence_length)
        else:
            write_start(method, work / "start", seed)
        figures: dict[str, Any] = {}
        for budget in budgets:
            record = recover(replace(again, steps=budget - spent, out=work / f"made{budget}", save_every=10_000))
            for point, when in (("sliced", "held_out_before"), (str(budget), "held_out")):
                figures[point] = round(record["figures"][when][DOMAIN]["perplexity"], 2)
    return figures


def main() -> None:
    """Run what is missing, print the table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method; default: 3")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[120, 240, 480],
        help="budgets, steps of 8 x 128 tokens; default: 120 240 480",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/pruning_quality.json"), help="results file"
    )
    options = parser.parse_args()
    hide_loading_bars()
    recipe = load_recipe(RecoverRecipe, RECIPES / "recover.yaml")
    if not recipe.corpus.is_dir():
        raise CorpusError(f"There is no {recipe.corpus}; run `make demo` to make it.")
    settings = {"steps": options.steps, "tokens_a_step": recipe.batch_size * recipe.sequence_length}
    record: dict[str, Any] = {"settings": settings, "runs": {}}
    if options.out.is_file():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        record = kept if kept["settings"] == settings else record
    steps = " ".join(map(str, options.steps))
    command = f"python -m benchmarks.pruning_quality --seeds {options.seeds} --steps {steps}"
    record |= {"benchmark": "pruning_quality", "command": command, "machine": machine_record()}
    missing = [
        (method, seed)
        for seed in range(options.seeds)
        for method in METHODS
        if str(seed) not in record["runs"].setdefault(method, {})
    ]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(run, method, seed, options.steps): (method, seed) for method, seed in missing}
        for future in as_completed(running):
            method, seed = running[future]
            record["runs"][method][str(seed)] = future.result()
            print(f"seed {seed} | {method} | {future.result()}")  # noqa: T201
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(options.out) as partial:
                partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(record)))  # noqa: T201
    plot(record, options.out.with_suffix(".svg"))
    print(f"made {options.out} and its plot")  # noqa: T201


def table(record: dict[str, Any]) -> list[str]:
    """Markdown rows: by method, the median of the seeds with the lowest and the highest, for every point."""
    points = ["sliced", *map(str, record["settings"]["steps"])]
    rows = [f"| method | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
    for method, runs in record["runs"].items():
        values = [sorted(row[point] for row in runs.values()) for point in points]
        cells = (f"{statistics.median(row):.1f} ({row[0]:.1f} to {row[-1]:.1f})" for row in values)
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return rows


def plot(record: dict[str, Any], out: Path) -> None:
    """Perplexity by budget: a line through the medians of each method's seeds, a dot for each seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    points = ["sliced", *map(str, record["settings"]["steps"])]
    for method, runs in record["runs"].items():
        rows = list(runs.values())
        medians = [statistics.median(row[point] for row in rows) for point in points]
        (line,) = panel.plot(points, medians, label=method)
        for row in rows:
            panel.plot(points, [row[point] for point in points], ".", color=line.get_color())
    panel.set(yscale="log", xlabel="steps of both stages", ylabel="held-out perplexity")
    panel.legend()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
