"""DRAGON fixtures against `drama_models` and `training`."""

from __future__ import annotations

from typing import Any

import numpy as np

from drama_models.pooling import pool
from tests.replays.compare import Tolerance, equal
from training.supervision import RankWindows, label_pools

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
        positives, negatives = label_pools(list(scores), WINDOWS)
        if positives:
            ours[query] = {"positives": positives, "negatives": negatives}, scores
    equal(sorted(ours), sorted(case["output"]), "queries")
    for query, (found, scores) in ours.items():
        for kind, documents in found.items():
            wanted = [(str(document), score) for document, score in case["output"][query][kind]]
            equal(documents, [document for document, _ in wanted], f"{query} {kind}")
            for document, score in wanted:
                np.testing.assert_allclose(scores[document], score, atol=1e-6)


KINDS = {
    "dragon_pooling": pooling,
    "dragon_label_pools": pools,
}
