"""Fixtures of all three sources about making training data, against `training.augment`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from drama_models.evaluation import pool_metrics
from tests.replays.compare import Tolerance, equal
from training.augment.crop import sentence_crops
from training.augment.deduplicate import duplicate_positions, normalise
from training.augment.filter import Percentiles, first_of_full_list, found_by_retriever
from training.augment.generate import clean_query, parse_task_query
from training.augment.rerank import parse_order
from training.data.supervision import RankWindows

Case = dict[str, Any]


def sentence_crop(case: Case, data: Case, tolerance: Tolerance) -> None:
    ours = [
        {
            "passage_id": passage["id"],
            "sentence_index": crop.sentence_index,
            "query": crop.query,
            "rest_of_passage": crop.rest,
        }
        for passage in case["input"]["passages"]
        for crop in sentence_crops(passage["text"], "en", "moses")
    ]
    equal(ours, case["output"]["queries"], "queries")
    equal(len(ours), case["output"]["count"], "count")


def dedup(case: Case, data: Case, tolerance: Tolerance) -> None:
    ids, texts = zip(*case["passages"], strict=True)
    equal([[key, normalise(text)] for key, text in case["passages"]], case["normalized"], "normalised")
    found = duplicate_positions(texts, part_characters=40)  # several parts, so that the merge is replayed too
    equal([ids[position] for position in sorted(found)], case["removed_ids"], "removed")


def query_parse(case: Case, data: Case, tolerance: Tolerance) -> None:
    found = parse_task_query(case["input"]["raw"])
    equal(asdict(found) if found else None, case["output"], "parts")


def query_postprocess(case: Case, data: Case, tolerance: Tolerance) -> None:
    equal(clean_query(case["raw"], header=True), case["query"], "query")


def rerank_parse(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    found = parse_order(given["raw"], given["passages"])
    equal(found.order, wanted["order"], "order")
    equal(found.listed, wanted["listed_by_model"], "listed")
    equal(found.appended, wanted["appended"], "appended")
    equal(found.complete, wanted["complete"], "complete")
    if given["hard_negatives"] is not None:
        windows = RankWindows(k=given["passages"], positives=1, negatives=given["hard_negatives"])
        equal(found.order[0], wanted["positive"], "positive")
        equal(found.order[windows.end], wanted["hard_negatives"], "hard negatives")


def retriever_filter(case: Case, data: Case, tolerance: Tolerance) -> None:
    removed = {*case["duplicate_ids"], *case["test_ids"]}
    found = [(query, found_by_retriever(query, ranked, case["top_k"], removed)) for query, ranked in case["runs"]]
    ours = [[query, [[key, rank] for rank, key in enumerate(kept, 1)]] for query, kept in found if kept is not None]
    equal(ours, case["output"], "kept lists")


def teacher_filter(case: Case, data: Case, tolerance: Tolerance) -> None:
    rows = [(row["qid"], [(key, score) for key, score in row["passages"]]) for row in case["rows"]]
    first = [(source, hits) for source, hits in rows if first_of_full_list(source, hits, 20)]
    equal([source for source, _ in first], case["kept_after_rank_first_filter"], "after the first filter")
    group = Percentiles.of([score for _, hits in first for _, score in hits])
    tolerance.close([group.low, group.weak, group.high], [case[f"percentile_{n}"] for n in (1, 25, 99)], "percentiles")
    kept = [(source, hits[:20]) for source, hits in first if hits[0][1] >= group.weak]
    equal([source for source, _ in kept], [row["qid"] for row in case["output"]], "kept")
    for (_, hits), row in zip(kept, case["output"], strict=True):
        equal([key for key, _ in hits], [key for key, _ in row["passages"]], "passages")
        tolerance.close(
            [group.normalised(score) for _, score in hits], [score for _, score in row["passages"]], "scores"
        )


def rank_metrics(case: Case, data: Case, tolerance: Tolerance) -> None:
    given = case["input"]
    found = pool_metrics(np.array(given["scores"]), np.array(given["positive_index"]), given["k"])
    equal(sorted(found), sorted(case["output"]), "names")
    for name, value in case["output"].items():
        tolerance.close(found[name], value, name)


KINDS = {
    "dragon_rank_metrics": rank_metrics,
    "specialization_retriever_filter": retriever_filter,
    "specialization_teacher_filter": teacher_filter,
    "drama_rerank_parse": rerank_parse,
    "drama_query_parse": query_parse,
    "specialization_query_postprocess": query_postprocess,
    "dragon_sentence_crop": sentence_crop,
    "specialization_dedup": dedup,
}
