"""DRAGON fixtures against `drama_models` and `training`."""

from __future__ import annotations

from typing import Any

import numpy as np

from drama_models.collection import titled
from drama_models.pooling import pool
from tests.replays.compare import Tolerance, equal
from training.data.batches import lay_out
from training.data.supervision import RankWindows, Supervision, label_pools, positive_distribution

Case = dict[str, Any]
WINDOWS = RankWindows(k=50, positives=10, negatives=5)


def pooling(case: Case, data: Case, tolerance: Tolerance) -> None:
    given = case["input"]
    pooled = pool(np.array(given["hidden_states"]), np.array(given["attention_mask"]), given["pooling"])
    tolerance.close(pooled, case["output"]["pooled"], "pooled")


def pools(case: Case, data: Case, tolerance: Tolerance) -> None:
    ours = {}
    for query, ranked in case["input"]["ranked_lists"].items():
        scores = {str(document): score for document, score in ranked}
        positives, negatives = label_pools([str(document) for document, _ in ranked], WINDOWS)
        if positives:
            ours[query] = {"positives": positives, "negatives": negatives}, scores
    equal(sorted(ours), sorted(case["output"]), "queries")
    for query, (found, scores) in ours.items():
        for kind, documents in found.items():
            wanted = [(str(document), score) for document, score in case["output"][query][kind]]
            equal(documents, [document for document, _ in wanted], f"{query} {kind}")
            for document, score in wanted:
                np.testing.assert_allclose(scores[document], score, atol=1e-6)


def progressive(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    order, lists = given["teachers_in_order"], given["ranked_lists"]
    active = [order[place] for place in Supervision(kind="progressive").active(len(order), given["iteration"])]
    equal(active, wanted["active_teachers"], "active_teachers")
    for query, sources in wanted["sources"].items():
        hitting = [teacher for teacher in active if lists[teacher].get(query)]
        equal(hitting, [source["teacher"] for source in sources], f"{query}: teachers")
        for source in sources:
            positives, negatives = label_pools(lists[source["teacher"]][query], WINDOWS)
            equal(positives, source["positive_pool"], f"{query}: positive_pool of {source['teacher']}")
            equal(negatives, source["negative_pool"], f"{query}: negative_pool of {source['teacher']}")
            np.testing.assert_allclose(1 / len(hitting), source["probability"], atol=1e-9)
        ours = positive_distribution([lists[teacher][query] for teacher in hitting], WINDOWS)
        theirs = wanted["sampling_distribution"][query]
        equal(len(ours), theirs["distinct_positives"], f"{query}: distinct_positives")
        # in order; documents that are equal in both numbers may come in any
        numbers = [[chance, ranks] for _, chance, ranks in ours]
        np.testing.assert_allclose(numbers, [[chance, ranks] for _, chance, ranks in theirs["ranking"]], atol=1e-9)
        chances = {str(document): chance for document, chance, _ in theirs["ranking"]}
        equal(sorted(chances), sorted(document for document, _, _ in ours), f"{query}: documents")
        for document, chance, _ in ours:
            np.testing.assert_allclose(chance, chances[document], atol=1e-9)


def schedule(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    order, length = given["teachers_in_order"], given["epochs_per_iteration"]
    supervision = Supervision(kind="progressive", epochs_per_iteration=length)
    iterations = [supervision.iteration(len(order), epoch=epoch) for epoch in given["epochs"]]
    equal(iterations, wanted["iteration"], "iteration")
    active = [[order[place] for place in supervision.active(len(order), number)] for number in iterations]
    equal(active, wanted["active_teachers"], "active_teachers")
    within = [epoch - (number - 1) * length for epoch, number in zip(given["epochs"], iterations, strict=True)]
    equal(within, wanted["epoch_within_iteration"], "epoch_within_iteration")


def batch_layout(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    separator, corpus = given["title_separator"], given["corpus"]

    def text(document: Case) -> str:
        record = document if corpus is None else corpus[document["docidx"]]
        return titled(record.get("title", "") if given["use_title"] else "", record["text"], f" {separator} ")

    negatives = given["negatives_per_query"]
    groups = [
        [text(document) for document in (row["positive_ctxs"][0], *row["hard_negative_ctxs"][:negatives])]
        for row in given["rows"]
    ]
    filler = "0" if corpus is None else text({"docidx": 0})
    documents, positives, absent = lay_out(groups, 1 + negatives, filler)
    equal([row["question"] for row in given["rows"]], wanted["queries"], "queries")
    equal(documents, wanted["documents"], "documents")
    equal(positives, wanted["positive_index"], "positive_index")
    equal(absent, wanted["padding_document"], "padding_document")


KINDS = {
    "dragon_progressive": progressive,
    "dragon_schedule": schedule,
    "dragon_batch_layout": batch_layout,
    "dragon_pooling": pooling,
    "dragon_label_pools": pools,
}
