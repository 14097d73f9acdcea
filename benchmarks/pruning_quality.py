"""What learned masks are worth: ways to a small model from `demo/source`, with the same number of training tokens.

    python -m benchmarks.pruning_quality [--methods learned ...] [--seeds 0 1 2] [--steps 120 240 480 960] [--out FILE]

learned: the demo's mask learning, slicing and recovery; its gates start from their importance. importance: cut right
at that start. open gates: all gates start open, as in Sheared-LLaMA. magnitude: evenly spaced layers, and the heads,
units and coordinates with the largest weights, equally many in each layer. random choice: the same numbers, drawn.
random start: random weights in the target's shape. A budget counts tokens of both stages: what was read to choose is
taken off the recovery. Where `--methods` names them, VARIANTS of the masks' settings run, and `random hidden`, `random
heads` and `random intermediate`, which are learned masks with one dimension drawn. In `learned units` and `random
units` the layer is dropped by `pruning.drop_layers` first, whose tokens count too, and the rest is learned, or drawn.
Reads the demo's corpus (`make demo` first); finished runs are kept in the results file, each with its commit, and not
run again. A plot is written beside it. Every process works on one thread, in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.machine import machine_record, write_result
from benchmarks.pruning_starts import drawn_masks, dropped_by_random_choice, write_start
from demo.stages import GATES, RECIPES, SOURCE
from drama_models.errors import CorpusError
from drama_models.progress import hide_loading_bars
from drama_models.provenance import read_provenance
from drama_models.recipe import load_recipe
from pruning.corpus import Corpus
from pruning.drop_layers import DropLayersRecipe, DropLayersSettings, drop_layers
from pruning.held_out import held_out_figures
from pruning.learn_masks import Gates, LearnMasksRecipe, learn_masks, load_masks
from pruning.recover import RecoverRecipe, recover
from pruning.shape import BackboneShape
from pruning.slicing import slice_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

METHODS = ("learned", "importance", "open gates", "magnitude", "random choice", "random start")
UNITS = ("learned units", "random units")  # layers are measured first
MEASURED = DropLayersSettings(sequences=8, sequence_length=128)
OPEN: dict[str, Any] = {
    "importance": None, "steps": 240, "sequence_length": 64, "batch_size": 4, "gradient_accumulation": 1,
    "warmup_steps": 10, "sparsity_warmup_steps": 100, "mask_learning_rate": 1.0, "multiplier_learning_rate": 1.0,
    "linear_multiplier_factor": 1.0,
}  # fmt: skip
DAMPED = OPEN | {
    "steps": 480, "batch_size": 1, "warmup_steps": 20, "sparsity_warmup_steps": 200, "mask_learning_rate": 0.3,
    "linear_multiplier_factor": 0.1,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {  # of the demo's mask learning
    "learned": {},
    "open gates": OPEN,
    "soft gates": OPEN | {"gates": "soft"},
    "trained weights": OPEN | {"learning_rate": 3e-4},
    "damped": DAMPED,  # half the tokens of `open gates`, twice the draws, multipliers that do not run ahead
    "damped, slow gates": DAMPED | {"mask_learning_rate": 0.1},
    "learned units": DAMPED,
}
DRAWN = {"random hidden": "hidden", "random heads": "head", "random intermediate": "intermediate"}  # of `learned`
LEARNED = (*VARIANTS, *DRAWN)
DOMAIN, SLICED = "documentation", "sliced"
PRECISION = "fp32"  # on every machine the same


def mask_recipe(method: str, seed: int, work: Path) -> tuple[LearnMasksRecipe, Gates]:
    """The demo's mask learning with the changes of a variant, and the gates to slice with."""
    settings = {"gates": GATES} | VARIANTS.get(method, {})
    gates = settings.pop("gates")
    recipe = load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml", precision=PRECISION)
    settings |= {"model": cut_from(method, seed, work), "out": work / f"masks of {method} {seed}"}
    return replace(recipe, seed=seed, save_every=10_000, **settings), gates


def cut_from(method: str, seed: int, work: Path) -> Path:
    """The model that a method starts from: the source, or what `write_shallow` made."""
    return work / f"shallow {method} {seed}" if method in UNITS else SOURCE


def write_shallow(out: Path, seed: int) -> None:
    """The source without the layers that it misses least."""
    learn = load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml")
    settings: dict[str, Any] = vars(MEASURED) | {"seed": seed, "num_layers": learn.target.num_layers}
    drop_layers(DropLayersRecipe(model=SOURCE, corpus=learn.corpus, out=out, **settings))


def make_start(method: str, seed: int, work: Path) -> dict[str, Any]:
    """Make the sliced folder of a method below `work`; returns what is to be kept of how it was made."""
    hide_loading_bars()
    torch.set_num_threads(1)
    kept: dict[str, Any] = {"commit": machine_record()["commit"]}
    out, model = work / f"{method} {seed}", cut_from(method, seed, work)
    if method in UNITS:
        write_shallow(model, seed)
        kept |= measured_layers(model)
    if method not in LEARNED:
        write_start(method, out, seed, model)
        return kept | ({} if method in UNITS else dropped_layers(out))
    learn, gates = mask_recipe(method, seed, work)
    sizes = learn_masks(learn)["figures"]["expected_sizes"]
    values = load_masks(learn.out, gates=gates, force=True)  # a variant that misses its sizes is there to be seen
    if method in DRAWN:
        values[DRAWN[method]] = drawn_masks(values["layer"].nonzero().flatten(), seed)[DRAWN[method]]
    slice_folder(learn.out, values, out, {})
    kept["expected_sizes"] = {name: round(size["expected"], 1) for name, size in sizes.items()}
    return kept | ({} if method in UNITS else dropped_layers(out))


def dropped_layers(sliced: Path) -> dict[str, list[int]]:
    """Which of the source's layers a sliced folder lacks."""
    kept = (read_provenance(sliced) or {})["figures"]["kept_layers"]
    every = range(BackboneShape.of(AutoConfig.from_pretrained(SOURCE)).num_layers)
    return {"dropped_layers": [layer for layer in every if layer not in kept]}


def measured_layers(shallow: Path) -> dict[str, Any]:
    """Which layers were dropped by measuring, and the tokens that this read."""
    figures = (read_provenance(shallow) or {})["figures"]
    return {"dropped_layers": [each["dropped"] for each in figures["losses"]], "measuring_tokens": figures["tokens"]}


def recover_start(method: str, seed: int, budget: int, work: Path) -> dict[str, float]:
    """Held-out perplexity of a sliced folder, and after what a budget of recovery-sized steps leaves for recovery."""
    hide_loading_bars()
    torch.set_num_threads(1)
    start = work / f"{method} {seed}"
    recipe = load_recipe(RecoverRecipe, RECIPES / "recover.yaml", precision=PRECISION)
    left = budget - spent_tokens(method, seed, work) // (recipe.batch_size * recipe.sequence_length)
    changes: dict[str, Any] = {"seed": seed, "steps": left, "save_every": 10_000}
    figures = recover(replace(recipe, model=start, out=work / f"{method} {seed} {budget}", **changes))["figures"]
    points = {SLICED: figures["held_out_before"], str(budget): figures["held_out"]}
    return {point: round(found[DOMAIN]["perplexity"], 2) for point, found in points.items()}


def spent_tokens(method: str, seed: int, work: Path) -> int:
    """Tokens that a method read before recovery."""
    source = BackboneShape.of(AutoConfig.from_pretrained(SOURCE))
    measured = measured_layers(cut_from(method, seed, work))["measuring_tokens"] if method in UNITS else 0
    if method == "importance":
        return load_recipe(LearnMasksRecipe, RECIPES / "learn_masks.yaml").measuring_tokens(source)
    if method not in LEARNED:
        return measured
    learn, _ = mask_recipe(method, seed, work)
    return measured + learn.measuring_tokens(source) + learn.steps * learn.batch_size * learn.sequence_length


def source_perplexities() -> dict[str, Any]:
    """Held-out perplexity of the source, whole and without each of its layers: what there is to learn about them."""
    recipe = load_recipe(RecoverRecipe, RECIPES / "recover.yaml")
    corpus = Corpus.open(recipe.corpus)
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32)
    layers = list(model.model.layers)

    def perplexity(kept: list[torch.nn.Module]) -> float:
        model.model.layers = torch.nn.ModuleList(kept)
        model.config.num_hidden_layers = len(kept)
        return round(held_out_figures(model, corpus, **recipe.held_out)[DOMAIN]["perplexity"], 2)

    without = [perplexity([layer for layer in layers if layer is not dropped]) for dropped in layers]
    return {"source_perplexity": perplexity(layers), "source_perplexity_without_layer": without}


def parse_options() -> argparse.Namespace:
    """What to run and where to keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = list(dict.fromkeys([*METHODS, *LEARNED, *UNITS]))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=known,
        metavar="METHOD",
        help=f"any of: {', '.join(known)}; default: the first {len(METHODS)}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each method; default: 0 1 2")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[120, 240, 480, 960],
        help="budgets, steps of 8 x 128 tokens; default: 120 240 480 960",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time; default: every core")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/pruning_quality.json"), help="results file"
    )
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print the table, write the results file."""
    options = parse_options()
    hide_loading_bars()
    recipe = load_recipe(RecoverRecipe, RECIPES / "recover.yaml")
    if not recipe.corpus.is_dir():
        raise CorpusError(f"There is no {recipe.corpus}; run `make demo` to make it.")
    tokens = recipe.batch_size * recipe.sequence_length
    settings = {"tokens_a_step": tokens, "variants": VARIANTS, "precision": PRECISION}
    record: dict[str, Any] = {"benchmark": "pruning_quality", "settings": settings, "commands": [], "runs": {}}
    if options.out.is_file():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        record = kept if kept["settings"] == settings else record
    record |= {"machine": machine_record()}
    if "source_perplexity" not in record:
        record |= source_perplexities()
    command = shlex.join(["python", "-m", "benchmarks.pruning_quality", *sys.argv[1:]])
    record["commands"] = list(dict.fromkeys([*record["commands"], command]))
    complete(record, options)
    record["dropped_by_random_choice"] = dropped_by_random_choice(map(int, record["runs"].get("random choice", {})))
    write_result(options.out, record)
    others = [name for name in record["runs"] if name not in METHODS]
    print("\n".join([*table(record), "", *table(record, others)]))  # noqa: T201
    plot(record, options.out.with_suffix(".svg"))


def complete(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Run what the record lacks: all starts, then the budgets, the small ones first; each result is kept at once."""
    runs = record["runs"]
    wanted = itertools.product(options.steps, options.seeds, options.methods)
    missing = [
        (method, seed, budget)
        for budget, seed, method in wanted
        if str(budget) not in runs.setdefault(method, {}).setdefault(str(seed), {})
    ]
    starts = dict.fromkeys((method, seed) for method, seed, _ in missing)
    stages: list[tuple[Callable[..., dict[str, Any]], Collection[tuple[Any, ...]]]] = [
        (make_start, starts),
        (recover_start, missing),
    ]
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder, ProcessPoolExecutor(options.processes, context) as pool:
        work = Path(folder)
        for make, tasks in stages:
            running = {pool.submit(make, *task, work): task for task in tasks}
            for future in as_completed(running):
                method, seed = running[future][:2]
                runs[method][str(seed)] |= future.result()
                print(f"{method} | seed {seed} | {future.result()}")  # noqa: T201
                write_result(options.out, record)


def points_of(record: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """Where these methods were measured: right after slicing, then by budget."""
    rows = [row for method in methods for row in record["runs"].get(method, {}).values()]
    return [SLICED, *sorted({point for row in rows for point in row if point.isdigit()}, key=int)]


def table(record: dict[str, Any], methods: Sequence[str] = METHODS) -> list[str]:
    """Markdown rows: by method, the median of the seeds with the lowest and the highest, for every point."""
    points = points_of(record, methods)
    rows = [f"| method | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
    for method in methods:
        cells = []
        for point in points:
            values = [row[point] for row in record["runs"].get(method, {}).values() if point in row]
            spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.1f}{spread}" if values else "")
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return rows


def plot(record: dict[str, Any], out: Path) -> None:
    """Perplexity by budget: a line through the medians of each method's seeds, a dot for each seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    points = points_of(record, METHODS)
    for method in METHODS:
        runs = list(record["runs"].get(method, {}).values())
        places = [place for place, point in enumerate(points) if any(point in row for row in runs)]
        values = [[row[points[place]] for row in runs if points[place] in row] for place in places]
        (line,) = panel.plot(places, [statistics.median(row) for row in values], label=method)
        for place, row in zip(places, values, strict=True):
            panel.plot([place] * len(row), row, ".", color=line.get_color())
    panel.set(yscale="log", xlabel="steps of both stages", ylabel="held-out perplexity")
    panel.set_xticks(range(len(points)), points)
    panel.legend()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
