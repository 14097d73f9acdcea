"""The whole way with a model that `transformers serve` runs on loopback.

The model is tiny and random, so nothing is said about quality: only that queries are asked for, lists are put in order,
and a retriever comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.training.augment.test_served_model import served  # noqa: F401 (a fixture)
from tests.training.specialise.documents import QUICK, write_manuals
from training.specialise.settings import SpecialiseRecipe
from training.specialise.specialise import specialise

if TYPE_CHECKING:
    from training.augment.llm import Endpoint


@pytest.mark.slow
def test_a_served_model_takes_part(served: Endpoint, retriever_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = SpecialiseRecipe(
        documents=write_manuals(tmp_path / "manuals", range(12)), model=retriever_folder, out=tmp_path / "out",
        llm=served.url, llm_model=served.model, llm_concurrency=2, generated=("question",), found=("title", "question"),
        **QUICK,
    )  # fmt: skip
    findings = specialise(recipe)
    asked = findings.large_model["answers"] + findings.large_model["failed"]
    assert asked == findings.corpus.passages
    assert findings.large_model["reranking"]["queries"] == sum(kind.train + kind.dev for kind in findings.kinds)
    assert {ranker.role for ranker in findings.rankers} == {"model", "retriever", "labels"}
    assert (tmp_path / "out" / "retriever" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
