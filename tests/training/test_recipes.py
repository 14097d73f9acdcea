"""Every shipped recipe, read as it is and run for four steps on a small model of the class it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import BertConfig, BertModel, Gemma2Config, Gemma2Model, LlamaModel, MistralConfig, MistralModel

from drama_models import Collection, Encoder, Profile
from drama_models.errors import TrainingError
from drama_models.evaluation import write_run
from drama_models.recipe import load_recipe
from tests.conftest import TEXTS, make_tokenizer
from training.data.examples import read_examples, write_examples
from training.dry_run import forecast
from training.encoders import build_encoder
from training.lora import Lora
from training.recipe import ObjectiveRecipe, TrainRecipe
from training.start import write_start_folder
from training.train import train

if TYPE_CHECKING:
    from training.data.datasets import DatasetRecipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.iterdir())
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def backbones(llama_folder: Path, retriever_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each recipe's class."""
    root = tmp_path_factory.mktemp("backbones")
    tokenizer = make_tokenizer()
    grouped = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    BertModel(BertConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(root / "dragon")
    MistralModel(MistralConfig(**grouped)).save_pretrained(root / "bge-en-icl")
    Gemma2Model(Gemma2Config(**grouped)).save_pretrained(root / "bge-multilingual-gemma2")
    for folder in root.iterdir():
        tokenizer.save_pretrained(folder)
    return {
        **{name: llama_folder for name in NAMES if name.startswith("drama")},
        **{folder.name: folder for folder in root.iterdir()},
        "specialisation": retriever_folder,
    }


@pytest.fixture(scope="module")
def data(collection_folder: Path, examples_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scored examples, and one teacher's run."""
    folder = tmp_path_factory.mktemp("data")
    scored = (
        replace(
            example,
            scores={key: 1 / place for place, key in enumerate([*example.positive_ids, *example.negative_ids], 1)},
        )
        for example in read_examples(examples_file)
    )
    write_examples(folder / "examples.jsonl", scored)
    names = [document.id for document in Collection(collection_folder).documents()]
    queries = Collection(collection_folder).queries()
    run = {
        query: {key: float(-rank) for rank, key in enumerate([*names[12 * place :], *names[: 12 * place]][:50])}
        for place, query in enumerate(queries)
    }
    write_run(folder / "teacher.run", run)
    return {"collection": collection_folder, "examples": folder / "examples.jsonl", "run": folder / "teacher.run"}


def miniature(recipe: TrainRecipe, backbone: Path, data: dict[str, Path]) -> TrainRecipe:
    """The recipe with little data, short texts, small batches and four steps; what it is about stays."""

    def small(dataset: DatasetRecipe) -> DatasetRecipe:
        teachers = [replace(teacher, run=data["run"]) for teacher in dataset.teachers]
        supervision = dataset.supervision
        if supervision.steps_per_iteration:
            supervision = replace(supervision, steps_per_iteration=2)
        examples = data["examples"] if dataset.examples else None
        return replace(
            dataset, collection=data["collection"], examples=examples, queries=None, teachers=teachers,
            supervision=supervision, batch_size=2,
        )  # fmt: skip

    in_context = recipe.in_context
    if in_context:
        in_context = replace(
            in_context, query_max_length=96, document_max_length=32, kept_for_query=40, example_query_max_length=24,
            example_document_max_length=24,
        )  # fmt: skip
    objective: ObjectiveRecipe = replace(recipe.objective, dims=(48, 16) if recipe.objective.dims else ())
    return replace(
        recipe, backbone=backbone, datasets=[small(dataset) for dataset in recipe.datasets], objective=objective,
        encoder=replace(recipe.encoder, max_length=32), in_context=in_context, evaluation=None, steps=4, epochs=None,
        negatives=min(recipe.negatives, 3), chunk_tokens=recipe.chunk_tokens and 200, warmup_steps=1,
        precision="fp32", device="cpu", log_every=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_recipe_trains_what_it_says(
    name: str, backbones: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    whole = load_recipe(TrainRecipe, RECIPES / f"{name}.yaml", out=tmp_path / "made")
    recipe = miniature(whole, backbones[name], data)
    train(recipe)
    profile = Profile.from_folder(tmp_path / "made")
    if not recipe.continue_retriever:
        assert (profile.bidirectional, profile.pooling) == (recipe.encoder.bidirectional, recipe.encoder.pooling)
        assert profile.normalise == recipe.encoder.normalise
    assert (profile.instruct is not None) == (recipe.in_context is not None)
    encoder = Encoder.from_pretrained(tmp_path / "made", runtime="torch")
    vectors = encoder.encode_queries(TEXTS[:3])
    assert vectors.shape == (3, profile.hidden_size)
    if recipe.encoder.two_encoders:
        assert abs(vectors - encoder.encode_documents(TEXTS[:3])).max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_a_recipe_says_where_it_comes_from(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    fields = text.partition("\ndatasets:")[0].splitlines()
    bare = [
        line for line in fields
        if ":" in line and not line.startswith("#") and "#" not in line and not line.rstrip().endswith(":")
    ]  # fmt: skip
    told = {"backbone", "out", "document_prompt", "split", "every", "rank", "alpha", "dropout", "targets"}
    assert {line.strip().partition(":")[0] for line in bare} <= told


def test_specialising_by_hand_minimises_what_the_command_does(tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, RECIPES / "specialisation.yaml", out=tmp_path / "made")
    assert recipe.objective == ObjectiveRecipe.specialisation()


def test_a_forecast_counts_what_will_be_trained(llama_folder: Path, data: dict[str, Path], tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, RECIPES / "drama-base.yaml", out=tmp_path / "made")
    small = replace(miniature(recipe, llama_folder, data), epochs=2.0)
    found = forecast(small)
    queries = {"supervised": 96} | {name: 8 for name in found.queries if name != "supervised"}
    assert found.queries == queries
    assert found.steps == 2 * sum(found.batches_per_epoch.values())
    assert found.epochs == 2
    model = LlamaModel.from_pretrained(llama_folder)
    assert found.parameters == found.trained_parameters == model.num_parameters()
    assert found.weights_gib * 2**30 == pytest.approx(16 * model.num_parameters())
    assert "GiB for weights and optimiser" in str(found)
    assert not (tmp_path / "made").exists()
    assert found.texts_per_step < found.tokens_per_step <= 32 * found.texts_per_step
    low = replace(small, encoder=replace(small.encoder, lora=Lora(rank=4)))
    peft = build_encoder(write_start(llama_folder, tmp_path / "start"), low.encoder, device="cpu")
    assert forecast(low).trained_parameters == sum(p.numel() for p in peft.parameters() if p.requires_grad)
    with pytest.raises(TrainingError, match=r"dims=\(96, 16\) go beyond the backbone's 48; use sizes up to that"):
        forecast(replace(small, objective=replace(small.objective, dims=(96, 16))))


def write_start(backbone: Path, folder: Path) -> Path:
    write_start_folder(backbone, folder, bidirectional=True)
    return folder
