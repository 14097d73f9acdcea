"""Kinds of index side by side: recall@10 against exact search, queries a second, bytes for a vector, build time.

    OMP_NUM_THREADS=1 python -m benchmarks.index [--count 100000] [--dim 256] [--vectors FOLDER] [--rounds 3]

Generated vectors lie in clusters with a falling spectrum, as embeddings do; `--vectors` adds a folder that `drama
encode` made. Queries are held-out documents: of generated vectors 500 further ones, of a folder 500 drawn from it. Each
index is saved and opened again, so that what is searched is memory-mapped. Seconds are those of the processor, in one
thread, so that a busy machine disturbs them little; queries a second are the best of the rounds, in which the systems
take turns, for queries that come one by one and for 64 at a time. Recall of clusters flatters every kind that is not
exact: read the speeds there, and the recall of your own vectors. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import machine_record, write_result
from drama_models import Index
from drama_models.bulk import read_shards

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Search = Callable[[NDArray[np.float32]], list[list[str]]]

K, QUERIES, AT_ONCE, SINGLE = 10, 500, 64, 50
BUILT: dict[str, tuple[str, dict[str, Any]]] = {
    "flat": ("flat", {}),
    "int8": ("int8", {}),
    "binary": ("binary", {}),
    "binary, float32 on disk": ("binary", {"rescored_with": "float32"}),
    "hnsw": ("hnsw", {}),
    "ivf_pq": ("ivf_pq", {}),
}
TUNED: dict[str, list[dict[str, int]]] = {
    "binary": [{"candidates": 50}, {"candidates": 200}, {"candidates": 1000}],
    "hnsw": [{"search_width": 32}, {"search_width": 64}, {"search_width": 128}],
    "ivf_pq": [{"probes": 8}, {"probes": 32}, {"probes": 128}],
}


@dataclass
class Searched:
    """One row of the table: an index with its settings of the search."""

    name: str
    settings: dict[str, int]
    search: Search
    figures: dict[str, Any]


def clustered(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors in a thousand clusters whose coordinates fall off as those of embeddings do, (count, dim)."""
    spectrum = np.arange(1, dim + 1) ** -0.3
    centres = np.random.default_rng(0).normal(size=(1000, dim)) * spectrum
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(len(centres), size=count)]
    vectors += 0.7 * generator.normal(size=(count, dim)) * spectrum
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    vectors = vectors @ rotation  # so that no coordinate stands out
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def held_out(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of a folder of `drama encode`, and 500 others of it as queries."""
    vectors = np.concatenate([rows for _, rows in read_shards(folder)])
    asked = np.zeros(len(vectors), dtype=bool)
    asked[np.random.default_rng(0).choice(len(vectors), QUERIES, replace=False)] = True
    return vectors[~asked], vectors[asked]


def measure(documents: NDArray[np.float32], queries: NDArray[np.float32], rounds: int, work: Path) -> dict[str, Any]:
    """Build every kind over the documents, and let them answer the queries in turn."""
    rows = [_faiss_flat(documents), *(row for name in BUILT for row in _built(name, documents, work))]
    exact = rows[0].search(queries)
    for row in rows:
        found = row.search(queries)
        row.figures["recall@10"] = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)]))
        row.figures["same_ranking"] = float(np.mean([a == b for a, b in zip(found, exact, strict=True)]))
    for _ in range(rounds):
        for row in rows:
            for at_once, asked in ((1, SINGLE), (AT_ONCE, len(queries))):
                rate = _rate(row.search, queries[:asked], at_once)
                name = f"queries_per_s_by_{at_once}"
                row.figures[name] = max(row.figures.get(name, 0.0), rate)
    return {
        "documents": len(documents),
        "dim": documents.shape[1],
        "rows": [{"kind": row.name, "settings": row.settings, **row.figures} for row in rows],
    }


def _built(name: str, documents: NDArray[np.float32], work: Path) -> list[Searched]:
    """An index with each of its settings of the search."""
    kind, settings = BUILT[name]
    index = Index(documents.shape[1], kind=kind, **settings)
    index.add([str(row) for row in range(len(documents))], documents)
    began_s = time.process_time()
    folder = work / name
    index.save(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    rows_bytes = sum(size for file, size in sizes.items() if file.startswith("rows"))
    searched = sum(size for file, size in sizes.items() if file == "index.faiss") or rows_bytes
    figures = {
        "build_s": time.process_time() - began_s,
        "searched_bytes_per_vector": searched / len(documents),
        "rescored_bytes_per_vector": rows_bytes / len(documents) if kind != "flat" else 0.0,
    }
    return [Searched(name, tuning, _tuned(folder, tuning), dict(figures)) for tuning in TUNED.get(name, [{}])]


def _tuned(folder: Path, tuning: dict[str, int]) -> Search:
    index = Index.load(folder)
    index.tune(**tuning)
    return lambda queries: [[key for key, _ in hits] for hits in index.search(queries, K)]


def _faiss_flat(documents: NDArray[np.float32]) -> Searched:
    """The reference: exact by definition, and the speed that `flat` is to beat."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    began_s = time.process_time()
    index.add(documents)

    def search(queries: NDArray[np.float32]) -> list[list[str]]:
        return [[str(row) for row in rows] for rows in index.search(queries, K)[1]]

    figures = {
        "build_s": time.process_time() - began_s,
        "searched_bytes_per_vector": 4.0 * documents.shape[1],
        "rescored_bytes_per_vector": 0.0,
    }
    return Searched("faiss IndexFlatIP", {}, search, figures)


def _rate(search: Search, queries: NDArray[np.float32], at_once: int) -> float:
    began_s = time.process_time()
    for start in range(0, len(queries), at_once):
        search(queries[start : start + at_once])
    return len(queries) / (time.process_time() - began_s)


def table(record: dict[str, Any]) -> str:
    """The rows for people, in Markdown."""
    lines = [
        "| kind | search | bytes searched + on disk | build, s | queries/s, one by one | by 64 | recall@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        tuning = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        size = f"{row['searched_bytes_per_vector']:,.0f} + {row['rescored_bytes_per_vector']:,.0f}"
        lines.append(
            f"| {row['kind']} | {tuning} | {size} | {row['build_s']:.1f} | {row['queries_per_s_by_1']:,.0f} "
            f"| {row['queries_per_s_by_64']:,.0f} | {row['recall@10']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="generated documents, 0 for none; default: 100,000")
    parser.add_argument("--dim", type=int, default=256, help="their size; default: 256")
    parser.add_argument("--vectors", type=Path, help="folder of `drama encode` to measure too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.json"))
    options = parser.parse_args()
    given = {}
    if options.count:
        given["generated"] = clustered(options.count, options.dim, 2), clustered(QUERIES, options.dim, 3)
    if options.vectors is not None:
        given[options.vectors.name] = held_out(options.vectors)
    measured = {}
    for name, (documents, queries) in given.items():
        with tempfile.TemporaryDirectory() as work:
            measured[name] = measure(documents, queries, options.rounds, Path(work))
        print(f"{name}: {len(documents):,} documents, dim {documents.shape[1]}\n{table(measured[name])}\n")  # noqa: T201
    sizes = f"--count {options.count} --dim {options.dim} --rounds {options.rounds}"
    write_result(
        options.out,
        {
            "benchmark": "index",
            "command": f"python -m benchmarks.index {sizes}",
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "machine": machine_record(),
            "vectors": measured,
        },
    )


if __name__ == "__main__":
    main()
