"""What a precision costs: nDCG@10 on real collections beside the cosine to float32.

    python -m benchmarks.precisions --collections FOLDER FOLDER [--models demo/out/release demo/nano] [--split test]

Each FOLDER of `--collections` is a BEIR folder. Queries and documents are encoded by every runtime and precision that
has the model, and searched exactly. Cosines are those of the documents' vectors to ONNX Runtime's in float32. Bfloat16
is left out where the processor would have to emulate it.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import machine_record, write_result
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.errors import DeviceError
from drama_models.evaluation import evaluate
from drama_models.hardware import train_in_bf16
from drama_models.model_folder import fingerprint
from drama_models.retriever import Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from drama_models.evaluation import Run
    from drama_models.runtimes.choice import Precision, RuntimeName

SYSTEMS: dict[str, tuple[RuntimeName, Precision]] = {
    "onnx fp32": ("onnx", "fp32"),
    "torch fp32": ("torch", "fp32"),
    "torch bf16": ("torch", "bf16"),
    "openvino fp32": ("openvino", "fp32"),
    "openvino bf16": ("openvino", "bf16"),
    "onnx int8": ("onnx", "int8"),
}
EXACT = "onnx fp32"
METRICS = ("ndcg@10", "recall@100")
DEPTH = 100


def measure(model: Path, folder: Path, split: str) -> dict[str, dict[str, float]]:
    """Quality and cosines of each precision that has the model, on one collection."""
    collection = Collection(folder)
    qrels = collection.qrels(split)
    queries = {key: text for key, text in collection.queries().items() if key in qrels}
    rows: dict[str, dict[str, float]] = {}
    exact = np.empty(0, dtype=np.float32)
    for name, (runtime, precision) in SYSTEMS.items():
        if precision == "bf16" and not train_in_bf16("auto"):
            continue
        try:
            encoder = Encoder.from_pretrained(model, runtime=runtime, precision=precision)
        except DeviceError:
            continue  # eight bits and OpenVINO are for Llamas
        run, vectors = search(encoder, collection, queries)
        exact = vectors if name == EXACT else exact
        cosines = (vectors * exact).sum(axis=1)
        rows[name] = {metric: round(value, 4) for metric, value in evaluate(run, qrels, METRICS).items()}
        rows[name] |= {"smallest_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
    return rows


def search(encoder: Encoder, collection: Collection, queries: dict[str, str]) -> tuple[Run, NDArray[np.float32]]:
    """The best documents of each query, and all documents' vectors."""
    retriever = Retriever.of_documents(encoder, collection.documents())
    return retriever.run(queries, DEPTH), retriever.index.vectors()


def table(record: dict[str, Any]) -> list[str]:
    """Markdown: a row for each model, collection and precision."""
    lines = ["| model | collection | precision | nDCG@10 | Recall@100 | smallest cosine |", "|---" * 6 + "|"]
    for model, found in record["models"].items():
        for collection, rows in found["collections"].items():
            for name, row in rows.items():
                cells = [f"{row[metric]:.4f}" for metric in METRICS] + [f"{row['smallest_cosine']:.5f}"]
                lines.append(f"| {' | '.join([model, collection, name, *cells])} |")
    return lines


def main() -> None:
    """Measure, print the table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--collections", type=Path, nargs="+", required=True, help="BEIR folders")
    add("--models", type=Path, nargs="+", default=[Path("demo/out/release"), Path("demo/nano")], help="retrievers")
    add("--split", default="test", help="of the judgements; default: test")
    add("--out", type=Path, default=Path("benchmarks/results/precisions.json"), help="results file")
    options = parser.parse_args()
    models = {
        str(model): {
            "fingerprint": fingerprint(model),
            "collections": {folder.name: measure(model, folder, options.split) for folder in options.collections},
        }
        for model in options.models
    }
    names = shlex.join([folder.name for folder in options.collections])
    record = {
        "benchmark": "precisions",
        "command": f"python -m benchmarks.precisions --collections {names} --models {shlex.join(models)} "
        f"--split {options.split}",
        "machine": machine_record(),
        "models": models,
    }
    print("\n".join(table(record)))  # noqa: T201
    write_result(options.out, record)


if __name__ == "__main__":
    main()
