"""What the demo measures on the hand-written test questions, with bootstrap intervals."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import bootstrap

from drama_models.bm25 import BM25
from drama_models.collection import Collection
from drama_models.encoder import Encoder
from drama_models.evaluation import Run, evaluate_per_query
from drama_models.index import Index
from drama_models.pooling import finish
from drama_models.provenance import read_provenance
from drama_models.retriever import Retriever
from export.to_onnx import write_onnx

if TYPE_CHECKING:
    from numpy.typing import NDArray

METRICS = ("ndcg@10", "recall@100")
RESAMPLES = 2000
HITS = 100


def measure(out: Path) -> tuple[dict[str, Any], dict[str, Run]]:
    """Evaluate BM25 and every model of the demo on the test questions.

    Args:
        out: the demo's folder, with all stages made.

    Returns:
        The metrics (`bm25`, `untrained`, `pruned_start`, `random_start`, `dims`, ...), and the run of each system.
    """
    collection = Collection(out / "collection")
    documents = list(collection.documents())
    queries, qrels = collection.queries(), collection.qrels("test")
    wanted = {key: queries[key] for key in qrels}
    bm25 = BM25((document.id, document.content) for document in documents)
    hits = bm25.search(list(wanted.values()), HITS)
    runs: dict[str, Run] = {"bm25": {key: dict(found) for key, found in zip(wanted, hits, strict=True)}}
    release = Encoder.from_pretrained(out / "release", runtime="onnx")
    for name, folder in (("untrained", "untrained/model"), ("random_start", "random_retriever")):
        with TemporaryDirectory() as work:  # with a graph, so that every model runs on the release's runtime
            shutil.copytree(out / folder, work, dirs_exist_ok=True)
            write_onnx(Path(work))
            encoder = Encoder.from_pretrained(work, runtime="onnx", max_length=release.profile.max_length)
            runs[name] = Retriever.of_documents(encoder, documents, show_progress=True).run(wanted, HITS)
    rows = Index.load(out / "index")
    runs["pruned_start"] = Retriever(release, rows).run(wanted, HITS)
    vectors, asked = rows.vectors(), release.encode_queries(list(wanted.values()))
    by_dim = {
        str(dim): _run(rows.ids, finish(vectors, dim, normalise=True), wanted, finish(asked, dim, normalise=True))
        for dim in release.profile.dims
    }
    metrics: dict[str, Any] = {name: scores(run, qrels) for name, run in runs.items()}
    metrics["dims"] = {dim: scores(run, qrels) for dim, run in by_dim.items()}
    parity = (read_provenance(out / "release") or {})["figures"]["parity"]
    onnx = next(entry for entry in parity if entry["client"] == "onnxruntime")
    metrics["onnx"] = {"max_abs_difference": onnx["largest_difference"]}
    metrics["questions"], metrics["documents"] = len(qrels), len(documents)
    return metrics, runs


def scores(run: Run, qrels: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Mean of each metric, and the 95% percentile-bootstrap interval of that mean over questions."""
    per_query = evaluate_per_query(run, qrels, METRICS)
    found: dict[str, Any] = {"interval": {}}
    for name, values in per_query.items():
        sample = np.array(list(values.values()))
        interval = bootstrap(
            (sample,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        found[name] = float(sample.mean())
        found["interval"][name] = [float(interval.low), float(interval.high)]
    return found


def _run(ids: list[str], vectors: NDArray[np.floating], queries: dict[str, str], asked: NDArray[np.floating]) -> Run:
    index = Index(vectors.shape[1])
    index.add(ids, vectors.astype(np.float32))
    found = index.search(asked.astype(np.float32), HITS)
    return {key: dict(hits) for key, hits in zip(queries, found, strict=True)}
