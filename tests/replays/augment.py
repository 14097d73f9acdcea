"""Fixtures of all three sources about making training data, against `training.augment`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tests.replays.compare import Tolerance, equal
from training.augment.crop import sentence_crops
from training.augment.deduplicate import duplicate_positions, normalise
from training.augment.generate import clean_query, parse_task_query

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


KINDS = {
    "drama_query_parse": query_parse,
    "specialization_query_postprocess": query_postprocess,
    "dragon_sentence_crop": sentence_crop,
    "specialization_dedup": dedup,
}
