"""Recipes that cannot be trained: a sentence before anything is encoded, on the command line and in a forecast."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from drama_models.checkpoints import claim
from drama_models.errors import (
    CollectionError,
    DeviceError,
    LengthError,
    ModelFolderError,
    RecipeError,
    TrainingError,
)
from drama_models.model_folder import WEIGHTS
from drama_models.recipe import load_recipe
from tests.conftest import train_recipe
from training.dry_run import forecast
from training.encoders import EncoderRecipe
from training.evaluation import EvaluationRecipe
from training.lora import Lora
from training.prompts import InContextSettings
from training.recipe import ObjectiveRecipe, TrainRecipe
from training.step_loss import StepLoss
from training.train import train
from training.trainer import training_arguments

NANO = Path("demo/nano")  # a BERT with embeddings of 128 positions


@pytest.fixture
def recipe(llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path) -> TrainRecipe:
    return train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "made")


PLAIN: dict[str, Any] = {
    "backbone": "b",
    "out": "o",
    "datasets": [{"name": "a", "task": "sts", "collection": "c", "examples": "e"}],
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, r"recipe\.yaml, line 8: steps=0 must be at least 1"),
        ({"learning_rate": -1e-3}, "line 8: learning_rate=-0.001 must be at least 0"),
        ({"warmup_steps": -1}, "line 8: warmup_steps=-1 must be at least 0"),
        ({"negatives": -1}, "line 8: negatives=-1 must be at least 0"),
        ({"query_length": 2}, "line 8: query_length=2 must be at least 3"),
        ({"save_every": 0}, "line 8: save_every=0 must be at least 1"),
        ({"chunk_tokens": 0}, "line 8: chunk_tokens=0 must be at least 1"),
        ({"epochs": 0.0}, "line 8: epochs=0.0 must be positive"),
        ({"epochs": float("nan")}, "line 8: epochs=nan must be positive"),
        ({"objective": {"dims": [16, 16]}}, r"dims=\(16, 16\) must be different positive sizes"),
        ({"objective": {"dims": [16, 0]}}, r"dims=\(16, 0\) must be different positive sizes"),
        ({"objective": {"dims": [16, 8], "dim_weights": [1, -1]}}, r"dim_weights=\(1.0, -1.0\) must be finite"),
        ({"objective": {"dims": [16, 8], "dim_weights": [1]}}, "dim_weights has 1 values for 2 dims"),
        ({"objective": {"contrastive_weight": float("nan")}}, "contrastive_weight=nan must not be negative"),
        ({"objective": {"contrastive_weight": 0.0}}, "must be finite, not negative, and not all zero"),
        ({"objective": {"contrastive": None}}, "objective has no term; set contrastive, listwise or reranker"),
        (
            {"objective": {"contrastive": {"temperature": 0}}},
            r"^[^ ]*recipe\.yaml, line 10: temperature=0.0 must be positive; 0.02 is a usual choice\.$",
        ),
        (
            {"datasets": [PLAIN["datasets"][0] | {"instruction": "Find it."}]},
            "Dataset 'a' has an instruction, which is read in runs with in_context alone",
        ),
        (
            {"evaluation": {"collection": "c", "instruction": "x"}},
            "evaluation.instruction is read in runs with in_context",
        ),
        (
            {"document_backbone": "d"},
            "document_backbone is the start of a second encoder; set encoder.two_encoders, or",
        ),
        ({"in_context": {"query_max_length": 512}}, "kept_for_query=512 leaves no room for examples in query_max_len"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PLAIN | wrong, sort_keys=False), encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(TrainRecipe, path)


def test_settings_of_the_stock_trainer_are_checked(recipe: TrainRecipe) -> None:
    assert training_arguments(replace(recipe, trainer={"dataloader_num_workers": 2})).dataloader_num_workers == 2
    with pytest.raises(RecipeError, match="trainer has no field 'report_too'; did you mean 'report_to'"):
        training_arguments(replace(recipe, trainer={"report_too": "wandb"}))
    with pytest.raises(RecipeError, match=r"The trainer refuses its settings: .*lower"):
        training_arguments(replace(recipe, trainer={"lr_scheduler_type": "lower"}))


def test_a_forecast_finds_what_a_training_would(recipe: TrainRecipe, tmp_path: Path) -> None:
    for run in (forecast, train):
        with pytest.raises(ModelFolderError, match=r"absent/config\.json is missing"):
            run(replace(recipe, backbone=tmp_path / "absent"))
        with pytest.raises(TrainingError, match=r"lora\.targets has 'qproj'.*linear layers are down_proj, .*q_proj"):
            run(replace(recipe, encoder=EncoderRecipe(lora=Lora(targets=("k_proj", "qproj")))))
        with pytest.raises(CollectionError, match=r"There is no corpus\.jsonl .*in .*absent"):
            run(replace(recipe, evaluation=EvaluationRecipe(collection=tmp_path / "absent")))
        with pytest.raises(CollectionError, match=r"There is no qrels/dev\.tsv .*it has the splits: test"):
            run(replace(recipe, evaluation=EvaluationRecipe(collection=recipe.datasets[0].collection)))


def test_a_backbone_without_whole_weights_is_refused(recipe: TrainRecipe, tmp_path: Path) -> None:
    for source in (recipe.backbone, NANO):
        backbone = shutil.copytree(source, tmp_path / source.name)
        damaged = replace(recipe, backbone=backbone)
        (backbone / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-1000])
        for run in (forecast, train):
            with pytest.raises(ModelFolderError, match=r"model\.safetensors has .* bytes where its header announces"):
                run(damaged)
        (backbone / WEIGHTS).unlink()
        for run in (forecast, train):
            with pytest.raises(ModelFolderError, match=r"model\.safetensors is missing"):
                run(damaged)
        weights = load_file(source / WEIGHTS)
        name = min(weights)
        weights[name].flatten()[-1] = float("inf")
        save_file(weights, backbone / WEIGHTS)
        with pytest.raises(
            ModelFolderError, match=rf"model\.safetensors: tensor '{name}' holds values that are no finite"
        ):
            train(damaged)


def test_texts_are_not_cut_beyond_the_positions_of_a_backbone(recipe: TrainRecipe) -> None:
    encoder = EncoderRecipe(max_length=129)
    within = replace(recipe, backbone=NANO, objective=ObjectiveRecipe())
    for run in (forecast, train):
        with pytest.raises(
            LengthError, match=r"encoder\.max_length=129 is beyond the 128 positions that demo/nano has"
        ):
            run(replace(within, encoder=encoder))
        with pytest.raises(LengthError, match=r"document_max_length=129 is beyond the 128 .*set it to at most 128\."):
            settings = InContextSettings(query_max_length=128, document_max_length=129, kept_for_query=64)
            run(replace(within, encoder=encoder, in_context=settings))
        with pytest.raises(LengthError, match="query_length=200 is beyond the 128"):
            run(replace(within, query_length=200))
        with pytest.raises(LengthError, match=r"beyond the 128 positions that demo/nano has"):
            two = EncoderRecipe(max_length=129, two_encoders=True)
            run(replace(recipe, document_backbone=NANO, encoder=two))
    assert forecast(replace(within, encoder=replace(encoder, max_length=128))).steps == 4


def test_two_trainings_do_not_make_one_folder(recipe: TrainRecipe) -> None:
    with claim(recipe.out), pytest.raises(TrainingError, match=r"Another run is making .*made; wait for it"):
        train(recipe)
    assert not list(recipe.out.parent.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is available")
def test_a_device_that_is_not_here_is_refused(recipe: TrainRecipe) -> None:
    with pytest.raises(DeviceError, match="device='gpu' is none; use cuda, mps or cpu"):
        train(replace(recipe, device="gpu"))
    with pytest.raises(DeviceError, match=r"device='cuda' is not available here; use .*cpu"):
        train(replace(recipe, device="cuda"))


def test_gradients_that_are_not_finite_stop_the_training_before_the_weights_move(
    recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slope of the square root at 0 is infinite, and 0 times it is no number: a finite loss without a gradient."""
    whole, calls = StepLoss.forward, []

    def forward(self: StepLoss, inputs: dict[str, Any]) -> torch.Tensor:
        calls.append(inputs["query_ids"])
        weight = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
        loss = whole(self, inputs)
        return loss + (weight.sum() * 0).sqrt() if len(calls) == 3 else loss

    monkeypatch.setattr(StepLoss, "forward", forward)
    with pytest.raises(TrainingError, match=r"The norm of the gradients is nan at step 3, on queries t\d+, .*topics"):
        train(recipe)
    work = recipe.out.parent / ".made.checkpoints"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr(StepLoss, "forward", whole)
    assert train(recipe)["figures"]["steps"] == 4  # the kept checkpoint is whole


def test_a_damaged_checkpoint_is_not_gone_on_with(recipe: TrainRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its optimiser's file the stock trainer would go on with another rate, and say nothing."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("training.train._write_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(recipe)
    last = recipe.out.parent / ".made.checkpoints" / "checkpoint-4"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        content = (last / name).read_bytes()
        for damaged in (content[: len(content) // 2], None):
            (last / name).unlink()
            if damaged is not None:
                (last / name).write_bytes(damaged)
            with pytest.raises(
                TrainingError, match=f"checkpoint-4/{name} is missing or damaged; remove .*checkpoint-4"
            ):
                train(recipe)
        (last / name).write_bytes(content)
    assert train(recipe)["figures"]["steps"] == 4
