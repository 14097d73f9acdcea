"""Fixtures of all losses, of whichever system, against `training.objectives` and `training.cross_device`."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from tests.replays.compare import Tolerance, equal
from training.cross_device import join_batches
from training.objectives import (
    Contrastive,
    FalseNegatives,
    Labels,
    Listwise,
    Matryoshka,
    Multilayer,
    OrderedDistillation,
    RerankerDistillation,
    WeightedSum,
)
from training.recipe import ObjectiveRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.objectives import Objective
    from training.objectives.similarity import Similarity

Case = dict[str, Any]


def contrastive_loss(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    query, document = _vectors(given["query_embeddings"]), _vectors(given["document_embeddings"])
    loss = _contrastive(given)(query, document, _labels(given))
    _compare(tolerance, loss, wanted["loss"], (query, wanted["grad_query"]), (document, wanted["grad_document"]))


def mrl_loss(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    query, document = _vectors(given["query_embeddings"]), _vectors(given["document_embeddings"])
    objective, labels = _contrastive(given), _labels(given)
    matryoshka = Matryoshka(objective=objective, dims=tuple(given["dims"]), weights=tuple(given["weights"]))
    loss = matryoshka(query, document, labels)
    gradients = (query, wanted["grad_query_of_sum"]), (document, wanted["grad_document_of_sum"])
    _compare(tolerance, loss, wanted["loss_weighted_sum"], *gradients)
    tolerance.close(loss / sum(given["weights"]), wanted["loss_weighted_mean"], "weighted mean")
    for dim, value in zip(given["dims"], wanted["loss_per_dim"], strict=True):
        tolerance.close(objective(query[:, :dim], document[:, :dim], labels), value, f"loss at {dim}")


def gather_loss(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, wanted = case["input"], case["output"]
    names = ("query_embeddings", "document_embeddings", "positive_index", "padding_document")
    ranks = [{name: given[f"{name}_per_rank"][rank] for name in names} | given for rank in range(given["world_size"])]
    factor, objective = wanted["factor_to_apply_to_local_loss"], _contrastive(given)
    for own, expected in enumerate(wanted["per_rank"]):
        batches = [
            (_vectors(each["query_embeddings"]), _vectors(each["document_embeddings"]), _labels(each)) for each in ranks
        ]
        query, document, labels = join_batches(batches, own)
        equal(labels.positive.tolist(), wanted["global_positive_index"], "positives of all ranks")
        loss = objective(query, document, labels)
        tolerance.close(loss, expected["loss"], f"loss of rank {own}")
        tolerance.close(loss, wanted["single_process"]["loss"], "loss of a single process")
        loss.backward()
        # what the mean over ranks divides by their number has been multiplied by it
        tolerance.close(batches[own][0].grad / factor, expected["grad_query"], f"query gradient of rank {own}")
        tolerance.close(batches[own][1].grad / factor, expected["grad_document"], f"document gradient of rank {own}")
        remote = [x.grad for rank, (q, d, _) in enumerate(batches) if rank != own for x in (q, d)]
        equal(remote, [None] * len(remote), "gradients of other ranks")


def icl_losses(case: Case, data: Case, tolerance: Tolerance) -> None:
    query, document = _vectors(case["queries"]), _vectors(case["passages"])
    labels = _grouped(len(query), case["teacher_scores"], len(document) // len(query), case["in_batch_negatives"])
    contrastive = Contrastive(temperature=case["temperature"])
    tolerance.close(contrastive(query, document, labels), case["contrastive_loss"], "contrastive loss")
    objective: Objective = contrastive
    if case["distillation"] is not None:
        kinds = {"kl_div": RerankerDistillation, "m3_kd_loss": OrderedDistillation}
        distillation = kinds[case["distillation"]](temperature=case["temperature"])
        tolerance.close(distillation(query, document, labels), case["distillation_loss"], "distillation loss")
        alone = case["distillation"] == "m3_kd_loss"
        objective = distillation if alone else WeightedSum(objectives=(contrastive, distillation))
    loss = objective(query, document, labels)
    _compare(tolerance, loss, case["loss"], (query, case["grad_queries"]), (document, case["grad_passages"]))


def specialization_losses(case: Case, data: Case, tolerance: Tolerance) -> None:
    query, document = _vectors(case["queries"]), _vectors(case["passages"])
    ids = list(itertools.chain.from_iterable(case["passage_ids"]))
    labels = _grouped(len(query), case["teacher_scores"], case["list_length"], in_batch_negatives=True, ids=ids)
    listwise = Listwise(
        student_temperature=case["student_temperature"], teacher_temperature=case["teacher_temperature"]
    )
    contrastive = Contrastive(
        temperature=case["contrastive_temperature"], false_negatives=FalseNegatives(share=case["threshold"])
    )
    kept = ~contrastive.left_out(labels)
    equal(kept.int().tolist(), case["kept_in_denominator"], "documents kept in the denominator")
    tolerance.close(contrastive(query, document, labels), case["contrastive_loss"], "contrastive loss")
    tolerance.close(listwise(query, document, labels), case["kl_loss"], "listwise loss")
    recipe = ObjectiveRecipe(contrastive=contrastive, listwise=listwise, contrastive_weight=case["contrastive_weight"])
    loss = recipe.build()(query, document, labels)
    _compare(tolerance, loss, case["total_loss"], (query, case["grad_queries"]), (document, case["grad_passages"]))


def multilayer_loss(case: Case, data: Case, tolerance: Tolerance) -> None:
    flat, outside = _vectors(case["layer_scores"]), case["teacher_scores"]
    queries = case["queries"]
    teacher = None if outside is None else torch.tensor(outside).view(queries, -1).tolist()
    labels = _grouped(queries, teacher, flat.shape[1] // queries, in_batch_negatives=False)
    objective = Multilayer(teacher="last layer" if outside is None else "scores")
    loss = objective(flat.view(len(flat), queries, -1), labels)
    _compare(tolerance, loss, case["loss"], (flat, case["grad_layer_scores"]))


def _vectors(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def _contrastive(given: Case) -> Contrastive:
    similarity: Similarity = "cosine" if given.get("normalise_before_loss", True) else "dot"
    return Contrastive(temperature=given["temperature"], similarity=similarity)


def _labels(given: Case) -> Labels:
    queries, documents = len(given["query_embeddings"]), len(given["document_embeddings"])
    return Labels.of(
        positives=given["positive_index"],
        absent=given.get("padding_document", [False] * documents),
        scores=[[math.nan] * (documents // queries)] * queries,
        in_batch_negatives=given.get("in_batch_negatives", True),
    )


def _grouped(
    queries: int, scores: list[list[float]] | None, size: int, in_batch_negatives: bool, ids: list[str] | None = None
) -> Labels:
    """Labels of groups of one size, the positive first."""
    return Labels.of(
        positives=[number * size for number in range(queries)],
        absent=[False] * (queries * size),
        scores=scores or [[math.nan] * size] * queries,
        document_ids=ids,
        in_batch_negatives=in_batch_negatives,
    )


def _compare(
    tolerance: Tolerance, loss: torch.Tensor, wanted: float, *gradients: tuple[torch.Tensor, list[list[float]]]
) -> None:
    tolerance.close(loss, wanted, "loss")
    loss.backward()
    for vectors, gradient in gradients:
        tolerance.close(vectors.grad, gradient, "gradient")


KINDS = {
    "drama_contrastive_loss": contrastive_loss,
    "drama_gather_loss": gather_loss,
    "drama_mrl_loss": mrl_loss,
    "dragon_contrastive_loss": contrastive_loss,
    "dragon_gather_loss": gather_loss,
    "icl_losses": icl_losses,
    "reranker_multilayer_loss": multilayer_loss,
    "specialization_losses": specialization_losses,
}
