"""Training: what is made, from what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from drama_models import Encoder, Profile
from drama_models.errors import CollectionError, ModelFolderError, TrainingError
from drama_models.provenance import chain, read_provenance
from tests.conftest import TEXTS, make_llama, train_recipe
from training import train as train_module
from training.examples import TrainingExample, write_examples
from training.start import write_start_folder
from training.train import TrainRecipe, last_complete_checkpoint, train, training_rows


def test_the_retriever_is_a_sentence_transformers_folder(retriever_folder: Path) -> None:
    model = SentenceTransformer(str(retriever_folder), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.prompts == {"query": "Query: ", "document": ""}
    ours = Encoder.from_pretrained(retriever_folder).encode_queries(TEXTS[:4])
    torch.testing.assert_close(torch.tensor(model.encode_query(TEXTS[:4])), torch.tensor(ours), atol=1e-5, rtol=0)
    profile = Profile.from_folder(retriever_folder)
    assert (profile.bidirectional, profile.dims, profile.max_length) == (True, (48, 16), 64)


def test_the_loss_falls_and_the_weights_move(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "made", steps=24)
    record = train(recipe)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "made" / "training_log.jsonl").read_text().splitlines()]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    assert [stage["stage"] for stage in chain(record)] == ["training.train"]
    assert record["figures"]["steps"] == 24
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    before, after = (load_file(folder / "model.safetensors") for folder in (llama_folder, tmp_path / "made"))
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[f"model.{name}"], after[name])


def test_the_causal_ablation_is_causal(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made", bidirectional=False, pooling="last"
    )
    train(recipe)
    profile = Profile.from_folder(tmp_path / "made")
    assert (profile.bidirectional, profile.pooling) == (False, "last")
    assert Encoder.from_pretrained(tmp_path / "made").encode_documents(TEXTS[:2]).shape == (2, 48)


class InterruptedRunError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "whole", steps=8)
    train(whole)
    recipe = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "cut", steps=8)
    stock = train_module.RetrieverTrainer.training_step

    def step(self: train_module.RetrieverTrainer, *inputs: Any) -> Any:
        if self.state.global_step == 5:
            raise InterruptedRunError
        return stock(self, *inputs)

    with monkeypatch.context() as patched:
        patched.setattr(train_module.RetrieverTrainer, "training_step", step)
        with pytest.raises(InterruptedRunError):
            train(recipe)
    work = tmp_path / ".cut.checkpoints"
    kept = last_complete_checkpoint(work)
    assert kept is not None
    assert kept.name == "checkpoint-4"
    train(recipe)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0, msg=name)


def test_rows_are_prompted_texts_of_the_collection(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(llama_folder, collection_folder, examples_file, tmp_path / "made", negatives=2)
    rows = training_rows(recipe)
    assert rows.column_names == ["query", "positive", "negative_1", "negative_2"]
    assert all(text.startswith("Query: ") for text in rows["query"])
    contents = {f"{text.split()[0]} {text}" for text in TEXTS}
    for name in rows.column_names[1:]:
        assert set(rows[name]) <= contents
    assert rows.to_dict() == training_rows(recipe).to_dict()
    assert all(len({row["positive"], row["negative_1"], row["negative_2"]}) == 3 for row in rows)


def test_start_folder_is_bidirectional_and_its_tokenizer_sets_both_ends(llama_folder: Path, tmp_path: Path) -> None:
    write_start_folder(llama_folder, tmp_path / "start", bidirectional=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    ids = tokenizer("a b c d e f", truncation=True, max_length=5)["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 5)
    config = json.loads((tmp_path / "start" / "config.json").read_text(encoding="utf-8"))
    assert (config["is_causal"], config["use_bidirectional_attention"]) == (False, True)
    with pytest.raises(ModelFolderError, match=r"is missing"):
        write_start_folder(tmp_path, tmp_path / "other", bidirectional=True)


def test_examples_that_do_not_fit_are_refused(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    def recipe(path: Path, **changes: object) -> TrainRecipe:
        return train_recipe(llama_folder, collection_folder, path, tmp_path / "made", **changes)

    with pytest.raises(CollectionError, match=r"fewer than a batch of 500; set a lower batch_size"):
        train(recipe(examples_file, batch_size=500))
    stray = [
        TrainingExample(query_id=f"t{number}", query="x", positive_ids=[f"d{number}"], negative_ids=["unknown"])
        for number in range(8)
    ]
    write_examples(tmp_path / "stray.jsonl", stray)
    with pytest.raises(CollectionError, match=r"'unknown', named by training example 't\d', is not in"):
        train(recipe(tmp_path / "stray.jsonl"))
    with pytest.raises(TrainingError, match="go beyond the backbone's 48"):
        train(recipe(examples_file, dims=(64,)))
    assert not (tmp_path / "made").exists()


def test_a_loss_that_is_not_finite_stops_the_training(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    recipe = train_recipe(
        llama_folder, collection_folder, examples_file, tmp_path / "made", learning_rate=1e30, warmup_steps=0, steps=6
    )
    with pytest.raises(TrainingError, match=r"The loss is nan at step \d"):
        train(recipe)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"dims": (8, 4), "dim_weights": (1.0,)}, "dim_weights has 1 values for 2 dims"),
    ],
)
def test_recipes_refuse_nonsense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_recipe(tmp_path, tmp_path, tmp_path, tmp_path, **changes)


def test_a_folder_that_no_model_can_be_read_from_is_refused(
    collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    folder = make_llama(tmp_path / "other")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    recipe = train_recipe(folder, collection_folder, examples_file, tmp_path / "made", bidirectional=False)
    with pytest.raises(ModelFolderError, match="is a bert, in which every token sees every other"):
        train(recipe)
    assert read_provenance(folder) is None
