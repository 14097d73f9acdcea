"""A small collection with queries, examples and runs, and ways to open them, for the tests of training data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from drama_models.collection import Collection
from drama_models.evaluation import write_run
from training.data.datasets import DatasetRecipe, TrainingDataset, open_datasets
from training.data.documents import TextStore
from training.data.examples import TrainingExample, write_examples

DOCUMENTS, QUERIES, EXAMPLES = 600, 60, 150


def write_collection(folder: Path, documents: int = DOCUMENTS, queries: int = QUERIES) -> Path:
    """Documents d0, d1, … with texts of their own, every third with a title; queries q0, q1 and so on."""
    records = (
        {"_id": f"d{number}", "title": "" if number % 3 else f"Title {number}", "text": f"text of number {number}"}
        for number in range(documents)
    )
    Collection.write(folder, records, {f"q{number}": f"query {number}" for number in range(queries)})
    return folder


def write_random_run(path: Path, seed: int, *, queries: int = QUERIES, depth: int = 60) -> dict[str, dict[str, float]]:
    """A run with as many random documents for each query, scores descending from 1."""
    generator = random.Random(seed)  # noqa: S311
    run = {}
    for number in range(queries):
        drawn = generator.sample(range(DOCUMENTS), depth)
        run[f"q{number}"] = {f"d{document}": 1 - rank / depth for rank, document in enumerate(drawn)}
    write_run(path, run)
    return run


def write_plain_examples(path: Path, count: int = EXAMPLES, negatives: int = 6) -> Path:
    """Query e-i with positive d-i and the next documents as negatives."""
    examples = (
        TrainingExample(
            query_id=f"e{number}",
            query=f"example {number}",
            positive_ids=[f"d{number}"],
            negative_ids=[f"d{(number + step) % DOCUMENTS}" for step in range(1, negatives + 1)],
            scores={f"d{number}": 1.5},
        )
        for number in range(count)
    )
    write_examples(path, examples)
    return path


def write_lines(path: Path, *records: Any) -> Path:
    """JSON lines; a string is written as it is."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def corpus_store(collection: Path, cache: Path) -> TextStore:
    """Its documents."""
    return TextStore(Collection(collection).corpus_file, cache)


def open_one(collection: Path, cache: Path, *, batch: int = 8, group: int = 3, **fields: Any) -> TrainingDataset:
    """A dataset with this batch and group size, a retrieval task unless the fields say otherwise."""
    settings: dict[str, Any] = {
        "name": "data",
        "task": "retrieval",
        "batch_size": batch,
        "negatives": group - 1,
    } | fields
    (dataset,) = open_datasets([DatasetRecipe(collection=collection, **settings)], cache=cache)
    return dataset
