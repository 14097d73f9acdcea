"""Scores that a model's authors published with the texts they belong to, as a check that vectors are theirs.

facebook/drama-base, from the page of its source code (facebookresearch/dpr-scale, folder `drama`): two queries and two
passages, English and Chinese, at full size and cut to 256. A causal encoder is off by a tenth and more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from drama_models.encoder import Encoder
from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class GoldenScores:
    """Texts, and the similarity of each query (row) to each document (column)."""

    model: str
    """Whose scores they are."""
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    tables: dict[int | None, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """By size of the embedding, None for the full one."""
    tolerance: float = 2e-3
    """Absolute; the tables have four decimals, and formats of computation differ."""


DRAMA_BASE = GoldenScores(
    model="facebook/drama-base",
    queries=("What percentage of the Earth's atmosphere is oxygen?", "意大利首都是哪里？"),
    documents=(
        "The amount of oxygen in the atmosphere has fluctuated over the last 600 million years, reaching a peak of 35% "
        "during the Carboniferous period, significantly higher than today's 21%.",
        "羅馬是欧洲国家意大利首都和罗马首都广域市的首府及意大利全国的政治、经济、文化和交通中心，"
        "位于意大利半島中部的台伯河下游平原地，建城初期在七座小山丘上，故又名“七丘之城”。"
        "按城市范围内的人口计算，罗马是意大利人口最多的城市，也是欧盟人口第三多的城市。",
    ),
    tables={
        None: ((0.5310, 0.0821), (0.1298, 0.6181)),
        256: ((0.6031, 0.1750), (0.2005, 0.7251)),
    },
)


def golden_difference(folder: Path, golden: GoldenScores = DRAMA_BASE) -> float:
    """Largest absolute difference between the published scores and those of a model folder.

    Raises:
        ModelFolderError: it is beyond the tolerance.
        DimensionError: the model is smaller than one of the tables.
    """
    encoder = Encoder.from_pretrained(folder, runtime="torch")
    difference = 0.0
    for dim, expected in golden.tables.items():
        queries = encoder.encode_queries(list(golden.queries), dim=dim)  # (queries, dim)
        documents = encoder.encode_documents(list(golden.documents), dim=dim)  # (documents, dim)
        difference = max(difference, float(np.abs(queries @ documents.T - np.array(expected)).max()))
    if not difference <= golden.tolerance:
        raise ModelFolderError(
            f"The scores are off those published for {golden.model} by {difference:.4f}, at most {golden.tolerance} is "
            "expected: these are other weights, or another tokenizer; leave out --golden if that is meant."
        )
    return difference
