"""Evaluations without a better one are counted across interruptions: a run stops at the step where it would have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import train_recipe
from training import train as training
from training.encoders import EncoderRecipe
from training.evaluation import CollectionEvaluator, EvaluationRecipe
from training.lora import Lora

VALUES = [0.5, 0.4, 0.45, 0.3, 0.9, 0.9, 0.9]  # stops at the fourth evaluation: three in a row below the first


class InterruptedRunError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("moment", "lora"), [("second evaluation", None), ("third evaluation", Lora(rank=4)), ("folder", None)]
)
def test_an_interrupted_run_loses_patience_where_it_would_have(
    moment: str,
    lora: Lora | None,
    llama_folder: Path,
    collection_folder: Path,
    examples_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = replace(
        train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "whole", steps=7),
        encoder=EncoderRecipe(max_length=64, lora=lora),
        evaluation=EvaluationRecipe(collection=collection_folder, split="test", every=1, patience=3),
    )
    broken_at = {"second evaluation": 2, "third evaluation": 3}.get(moment)

    def evaluate(self: CollectionEvaluator, model: Any, *_: Any, steps: int = -1, **__: Any) -> dict[str, float]:
        if steps == broken_at and recipe.out.name == "cut":
            raise InterruptedRunError
        value = VALUES[steps - 1]
        return {"ndcg@10": value, "recall@100": value}

    monkeypatch.setattr(CollectionEvaluator, "__call__", evaluate)
    whole = training.train(recipe)["figures"]
    assert (whole["steps"], whole["best_step"]) == (4, 1)
    recipe = replace(recipe, out=tmp_path / "cut")
    with monkeypatch.context() as once, pytest.raises(InterruptedRunError):
        if moment == "folder":
            once.setattr(training, "_write_folder", lambda *_: (_ for _ in ()).throw(InterruptedRunError))
        training.train(recipe)
    broken_at = None
    assert training.train(recipe)["figures"] == whole
    logs = [
        [json.loads(line) | {"elapsed_s": 0} for line in (folder / "training_log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "whole", recipe.out)
    ]
    assert logs[0] == logs[1]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", recipe.out)]
    assert weights[0] == weights[1]
