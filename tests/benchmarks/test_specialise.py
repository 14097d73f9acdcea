"""The specialisation benchmark: runs against brute force, and a table that says what the findings say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.specialise import bm25_run, dense_run, summary, table
from drama_models import BM25, Collection, Encoder
from tests.training.specialise.test_findings import findings


def test_runs_hold_the_best_documents(collection_folder: Path) -> None:
    collection, model = Collection(collection_folder), Path("demo/nano")
    queries, documents = collection.queries(), list(collection.documents())
    run = dense_run(model, collection, queries)
    encoder = Encoder.from_pretrained(model)
    contents = [document.content for document in documents]
    scores = encoder.encode_queries(list(queries.values())) @ encoder.encode_documents(contents).T
    for hits, row in zip(run.values(), scores, strict=True):
        np.testing.assert_allclose(sorted(hits.values(), reverse=True), np.sort(row)[::-1][:100], atol=1e-5)
    assert list(run) == list(queries)
    ranker = BM25((document.id, document.content) for document in documents)
    key, text = next(iter(queries.items()))
    assert bm25_run(collection, queries)[key] == dict(ranker.search([text], 100)[0])


def test_the_table_shows_the_queries_of_people() -> None:
    made = findings()
    (held_out,) = made.evaluations
    (ndcg, recall) = held_out.changes
    judged = replace(held_out, name="your queries", changes=[replace(ndcg, before=0.25, after=0.375), recall])
    record = summary(replace(made, evaluations=[held_out, judged]))
    assert [change["before"] for change in record["people's queries"]] == [0.25, 0.9]
    assert record["held-out made queries"][0] == {
        "metric": "ndcg@10", "before": 0.5, "after": 0.625, "low": -0.01, "high": 0.26, "p": 0.07
    }  # fmt: skip
    assert record["made_queries"] == {"question": {"train": 9, "kept": 7, "dev": 1, "test": 2}}
    record["collection_as_it_is"] = {"bm25": {"ndcg@10": 0.5, "recall@100": 0.75}}
    rows = table({"collections": {"manuals": record}})
    assert rows[2:] == [
        "| manuals | ndcg@10 | 0.250 | 0.375 | +0.125 | -0.010 to +0.260 | 0.0700 | 0.500 |",
        "| manuals | recall@100 | 0.900 | 0.950 | +0.050 | +0.010 to +0.090 | 0.0100 | 0.750 |",
    ]
