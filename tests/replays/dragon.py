"""DRAGON fixtures against `drama_models` and `training`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.collection import Collection
from drama_models.pooling import pool
from tests.replays.compare import Tolerance, equal
from training.data.batches import PlannedBatch, lay_out, read_texts
from training.data.datasets import DatasetRecipe, open_datasets
from training.data.examples import TrainingExample, write_examples
from training.data.supervision import RankWindows, Supervision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.data.datasets import TrainingDataset

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
        documents = [str(document) for document, _ in ranked]
        positives, negatives = documents[WINDOWS.top], documents[WINDOWS.end]
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
            ranked = lists[source["teacher"]][query]
            positives, negatives = ranked[WINDOWS.top], ranked[WINDOWS.end]
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
    negatives = given["negatives_per_query"]
    with TemporaryDirectory() as folder:
        dataset, groups = _opened(given, Path(folder))
        rows, _, _ = lay_out(groups, 1 + negatives, -1)
        planned = PlannedBatch(
            queries=np.arange(len(groups)),
            documents=np.array(rows).reshape(len(groups), -1),
            scores=np.full((len(groups), 1 + negatives), np.nan, np.float32),
        )
        batch = read_texts(dataset, planned)
    equal(batch.queries, wanted["queries"], "queries")
    equal(batch.positives, wanted["positive_index"], "positive_index")
    equal(batch.absent, wanted["padding_document"], "padding_document")
    # the reference fills up with any text, which no loss counts; ours is empty
    theirs = [text for text, absent in zip(wanted["documents"], wanted["padding_document"], strict=True) if not absent]
    equal([text for text, absent in zip(batch.documents, batch.absent, strict=True) if not absent], theirs, "documents")


def _opened(given: Case, folder: Path) -> tuple[TrainingDataset, list[list[int]]]:
    """The rows of a case as a dataset, and the documents of each by their row in the collection."""
    corpus = list(given["corpus"] or [])
    groups, examples = [], []
    for number, row in enumerate(given["rows"]):
        group = []
        for document in (row["positive_ctxs"][0], *row["hard_negative_ctxs"][: given["negatives_per_query"]]):
            group.append(document.get("docidx", len(corpus)))
            corpus += [] if "docidx" in document else [document]
        groups.append(group)
        own, *others = map(str, group)
        examples.append(
            TrainingExample(query_id=f"q{number}", query=row["question"], positive_ids=[own], negative_ids=others)
        )
    Collection.write(
        folder / "collection",
        (
            {"_id": str(number), "title": record.get("title", "") if given["use_title"] else "", "text": record["text"]}
            for number, record in enumerate(corpus)
        ),
    )
    write_examples(folder / "examples.jsonl", examples)
    recipe = DatasetRecipe(
        name="rows", task="retrieval", collection=folder / "collection", examples=folder / "examples.jsonl",
        title_separator=f" {given['title_separator']} ",
    )  # fmt: skip
    (dataset,) = open_datasets([recipe], batch_size=len(groups), negatives=given["negatives_per_query"])
    return dataset, groups


def positive_distribution(lists: Sequence[Sequence[str]], windows: RankWindows) -> list[tuple[str, float, float]]:
    """How often each document is drawn as the positive of a query: DRAGON's measure of diversity.

    Args:
        lists: ranked ids of each active teacher; teachers without hits count as absent.
        windows: ranks that count.

    Returns:
        Document, chance, and sum of reciprocal ranks over the teachers that could draw it; the most likely first,
        ties by that sum, then by id.
    """
    tops = [ranked[windows.top] for ranked in lists if ranked]
    chance: dict[str, float] = {}
    reciprocal: dict[str, float] = {}
    for top in tops:
        for rank, document in enumerate(top, start=1):
            chance[document] = chance.get(document, 0.0) + 1 / (len(top) * len(tops))
            reciprocal[document] = reciprocal.get(document, 0.0) + 1 / rank
    ranking = [(document, chance[document], reciprocal[document]) for document in chance]
    return sorted(ranking, key=lambda row: (-round(row[1], 12), -round(row[2], 12), row[0]))


KINDS = {
    "dragon_progressive": progressive,
    "dragon_schedule": schedule,
    "dragon_batch_layout": batch_layout,
    "dragon_pooling": pooling,
    "dragon_label_pools": pools,
}
