"""DRAMA fixtures against `drama_models` and `training`, but for its losses: those are in `objectives`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from drama_models.evaluation import evaluate_per_query
from drama_models.modeling_drama import DramaModel
from drama_models.pooling import finish, pool
from tests.replays.compare import Tolerance, equal
from training.data.supervision import RankWindows

Case = dict[str, Any]


def pooling(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    pooled = pool(np.array(given["hidden_states"]), np.array(given["attention_mask"]), given["pooling"])
    tolerance.close(pooled, wanted["pooled"], "pooled")
    if "embedding" in wanted:
        tolerance.close(finish(pooled, given["dim"], normalise=True), wanted["embedding"], "embedding")


def bidirectional_encoder(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    settings = dict(given["config"])
    rope = settings.pop("rope")
    # eager, since its softmax and norms round as those that made the fixture; sdpa in float64 is 2e-6 away
    settings |= {"rope_parameters": rope, "max_position_embeddings": 1 << 17, "attn_implementation": "eager"}
    config = LlamaConfig(**settings)
    model = DramaModel(config).double().eval()
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in given["weights"].items()})
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = [model(input_ids=row[None, keep.bool()]).last_hidden_state for row, keep in zip(ids, mask, strict=True)]
    tolerance.close(hidden * mask[..., None], wanted["last_hidden_state_bidirectional"], "hidden states")
    pooled = pool(hidden.numpy(), mask.numpy(), "mean")
    embedding = finish(pooled, None, normalise=True)
    tolerance.close(embedding, wanted["embedding"], "embedding")
    tolerance.close(finish(pooled, given["dim"], normalise=True), wanted["embedding_truncated"], "truncated")
    single = np.concatenate([finish(row.mean(1).numpy(), None, normalise=True) for row in alone])
    tolerance.close(single, wanted["embedding"], "embedding of each row alone")
    causal = np.array(wanted["embedding_if_wrongly_causal"])
    if np.allclose(embedding, causal, atol=1e-4):
        raise AssertionError("the embedding is that of causal attention")


def ndcg(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    metric = f"nDCG@{given['k']}"
    values = evaluate_per_query(
        given["run"], given["qrels"], [metric], drop_identical_ids=given["ignore_identical_ids"]
    )[metric]
    equal(sorted(values), sorted(wanted["per_query"]), "judged queries")
    for query, value in values.items():
        tolerance.close(value, wanted["per_query"][query], query)
    tolerance.close(sum(values.values()) / len(values), wanted["mean"], "mean")


def pools(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    windows = RankWindows(k=given["k"], positives=given["positives"], negatives=given["negatives"])
    positives, negatives = given["ranked_ids"][windows.top], given["ranked_ids"][windows.end]
    equal(positives, wanted["positive_ids"], "positive_ids")
    equal(negatives, wanted["negative_ids"], "negative_ids")
    ranks = {key: rank for rank, key in enumerate(given["ranked_ids"], start=1)}
    equal([ranks[key] for key in positives], wanted["positive_ranks"], "positive_ranks")
    equal([ranks[key] for key in negatives], wanted["negative_ranks"], "negative_ranks")


KINDS = {
    "drama_pooling": pooling,
    "drama_bidirectional_encoder": bidirectional_encoder,
    "drama_ndcg": ndcg,
    "drama_label_pools": pools,
}
