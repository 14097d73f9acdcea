"""One small batch and every objective, for the tests that must hold for all of them."""

from __future__ import annotations

import torch

from training.objectives import (
    Contrastive,
    FalseNegatives,
    Labels,
    Listwise,
    Matryoshka,
    Objective,
    OrderedDistillation,
    RerankerDistillation,
    WeightedSum,
)
from training.recipe import ObjectiveRecipe

B, N, D = 4, 3, 16


def embeddings(seed: int = 0, *, queries: int = B, dim: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Random queries (queries, dim) and documents (queries * N, dim) in float64."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(queries, dim, generator=generator, dtype=torch.float64)
    return query, torch.randn(queries * N, dim, generator=generator, dtype=torch.float64)


def labels(
    *,
    queries: int = B,
    documents: int = N,
    in_batch_negatives: bool = True,
    absent: tuple[int, ...] = (),
    ids: str | None = None,
    seed: int = 1,
) -> Labels:
    """Positive first but for the last query's, teacher scores from 0 to 1; `ids` has a letter for each document."""
    generator = torch.Generator().manual_seed(seed)
    positives = [number * documents for number in range(queries)]
    positives[-1] += 1
    return Labels.of(
        positives=positives,
        absent=[row in absent for row in range(queries * documents)],
        scores=torch.rand(queries, documents, generator=generator).tolist(),
        document_ids=ids,
        in_batch_negatives=in_batch_negatives,
    )


def objectives() -> dict[str, Objective]:
    """Every objective, and sums and prefixes of them."""
    contrastive = Contrastive(temperature=0.1)
    icl = WeightedSum(objectives=(contrastive, RerankerDistillation(temperature=0.1)))
    return {
        "contrastive": contrastive,
        "dot product": Contrastive(temperature=1.0, similarity="dot"),
        "filtered": Contrastive(temperature=0.1, false_negatives=FalseNegatives(share=0.8)),
        "listwise": Listwise(),
        "reranker distillation": RerankerDistillation(temperature=0.1),
        "ordered distillation": OrderedDistillation(temperature=0.1),
        "bge-en-icl": icl,
        "specialisation": ObjectiveRecipe.specialisation().build(),
        "matryoshka": Matryoshka(objective=contrastive, dims=(16, 8, 4), weights=(1.0, 0.5, 0.25)),
        "matryoshka of a sum": Matryoshka(objective=icl, dims=(16, 6)),
    }
