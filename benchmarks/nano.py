"""The shipped retriever on the hand-written test questions: BM25, `demo/nano`, and both fused by reciprocal rank.

    python -m benchmarks.nano [COLLECTION]

Test questions are about packages whose documentation taught nothing to `demo/nano`. Differences to BM25 come with a
two-sided paired randomisation test over questions (signs of the differences flipped at random).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from benchmarks.machine import machine_record, write_result
from demo.collect import collect
from demo.metrics import METRICS, scores
from drama_models.bm25 import BM25
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import Run, evaluate_per_query
from drama_models.index import Index, ModelIdentity
from drama_models.model_folder import fingerprint
from drama_models.retriever import Retriever

RESULT = Path("benchmarks/results/nano.json")
NANO, COLLECTION = Path("demo/nano"), Path("demo/out/collection")
HITS, RESAMPLES = 100, 20_000
Qrels = dict[str, dict[str, int]]


def main() -> int:
    """Measure, print a table, write the results file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else COLLECTION
    if not folder.is_dir():
        collect(folder)
    collection = Collection(folder)
    documents, qrels, queries = list(collection.documents()), collection.qrels("test"), collection.queries()
    runs, speed = run_systems([(row.id, row.content) for row in documents], {key: queries[key] for key in qrels})
    systems = {name: scores(run, qrels) | against(runs["bm25"], run, qrels) for name, run in runs.items()}
    record = {"benchmark": "nano", "command": "python -m benchmarks.nano", "machine": machine_record()}
    size = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    sizes = {"questions": len(qrels), "documents": len(documents), "folder_bytes": size}
    model = {"model": fingerprint(NANO)}
    write_result(RESULT, record | model | sizes | speed | {"systems": systems})
    for name, found in systems.items():
        figures = "  ".join(f"{metric} {found[metric]:.3f}" for metric in METRICS)
        p_values = "  ".join(f"p({metric}) {found['p_against_bm25'][metric]:.4f}" for metric in METRICS)
        print(f"{name:12} {figures}  {p_values}")  # noqa: T201
    return 0


def run_systems(documents: list[tuple[str, str]], queries: dict[str, str]) -> tuple[dict[str, Run], dict[str, float]]:
    """Run of each system, and how long encoding took."""
    ids, contents = [key for key, _ in documents], [content for _, content in documents]
    bm25 = BM25(documents)
    lexical = bm25.search(list(queries.values()), HITS)
    encoder = Encoder.from_pretrained(NANO)
    began_s = time.perf_counter()
    vectors = encoder.encode_documents(contents)
    documents_per_s = len(contents) / (time.perf_counter() - began_s)
    index = Index(encoder.dim, ModelIdentity.of(encoder, str(NANO)))
    index.add(ids, vectors)
    runs = {
        "bm25": {key: dict(hits) for key, hits in zip(queries, lexical, strict=True)},
        "nano": Retriever(encoder, index).run(queries, HITS),
        "nano + bm25": Retriever(encoder, index, bm25=bm25).run(queries, HITS),
    }
    return runs, {"documents_per_second": round(documents_per_s, 1)}


def against(baseline: Run, run: Run, qrels: Qrels) -> dict[str, Any]:
    """Mean difference to a baseline and its p-value, by metric."""
    theirs, ours = evaluate_per_query(baseline, qrels, METRICS), evaluate_per_query(run, qrels, METRICS)
    differences = {name: np.array([ours[name][key] - theirs[name][key] for key in qrels]) for name in METRICS}
    return {
        "difference_to_bm25": {name: float(values.mean()) for name, values in differences.items()},
        "p_against_bm25": {name: sign_flip_p(values) for name, values in differences.items()},
    }


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean of paired differences under random signs; 1 where there is no difference at all."""
    if not differences.any():
        return 1.0
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


if __name__ == "__main__":
    sys.exit(main())
