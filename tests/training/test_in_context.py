"""A run with instructions and examples: what it is evaluated on, what its forecast counts, what its folder knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralModel

from drama_models import Collection, Encoder, Index, Profile, Retriever, evaluate
from drama_models.errors import PromptError
from tests.conftest import TEXTS, make_tokenizer, train_recipe
from training.dry_run import forecast
from training.encoders import EncoderRecipe, build_encoder
from training.evaluation import CollectionEvaluator, EvaluationRecipe
from training.prompts import InContextSettings
from training.start import add_special_tokens, write_start_folder
from training.step_data import StepData
from training.train import open_plan, train
from training.trainer import training_arguments

if TYPE_CHECKING:
    from training.recipe import TrainRecipe

INSTRUCTION = "Find the text that begins like this."
SETTINGS = InContextSettings(
    query_max_length=160, document_max_length=40, kept_for_query=60, example_query_max_length=48,
    example_document_max_length=24,
)  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture
def recipe(collection_folder: Path, examples_file: Path, tmp_path: Path) -> TrainRecipe:
    """Four steps of a causal Mistral, as bge-en-icl but for the sizes."""
    tokenizer = make_tokenizer()
    MistralModel(MistralConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    plain = train_recipe(
        tmp_path / "mistral", collection_folder, examples_file, tmp_path / "made",
        encoder=EncoderRecipe(bidirectional=False, pooling="last"), in_context=SETTINGS, query_length=None,
        evaluation=EvaluationRecipe(collection=collection_folder, split="test", every=2, instruction=INSTRUCTION),
    )  # fmt: skip
    datasets = [replace(dataset, instruction=INSTRUCTION) for dataset in plain.datasets]
    return replace(plain, datasets=datasets, objective=replace(plain.objective, dims=()))


def test_the_made_folder_knows_its_tasks_and_lengths(recipe: TrainRecipe) -> None:
    train(recipe)
    profile = Profile.from_folder(recipe.out)
    assert (profile.max_length, profile.prompts["topics"]) == (40, f"<instruct>{INSTRUCTION}\n<query>")
    assert (profile.query_prompt, profile.document_prompt) == ("", "")
    encoder = Encoder.from_pretrained(recipe.out, runtime="torch")
    examples = [{"query": TEXTS[3][:20], "response": TEXTS[3]}]
    by_task, by_words = (
        encoder.encode_queries(TEXTS[:4], task=task, examples=examples) for task in ("topics", INSTRUCTION)
    )
    np.testing.assert_array_equal(by_task, by_words)
    assert np.abs(by_task - encoder.encode_queries(TEXTS[:4], task="topics")).max() > 1e-3
    assert np.abs(by_task - encoder.encode_queries(TEXTS[:4], examples=examples)).max() > 1e-3
    with pytest.raises(PromptError, match=r"task='topic' is not among the tasks of this model, which are: .*topics"):
        encoder.encode_queries(TEXTS[:4], task="topic")


def test_its_evaluation_asks_with_the_instruction_as_a_user_would(recipe: TrainRecipe) -> None:
    figures = train(recipe)["figures"]
    encoder = Encoder.from_pretrained(recipe.out, runtime="torch")
    documents = list(Collection(recipe.datasets[0].collection).documents())
    index = Index(encoder.dim)
    index.add([row.id for row in documents], encoder.encode_documents([row.content for row in documents]))
    queries, qrels = (getattr(Collection(recipe.datasets[0].collection), name) for name in ("queries", "qrels"))
    found = {}
    for task in (INSTRUCTION, None):
        vectors = encoder.encode_queries([queries()[key] for key in qrels("test")], task=task)
        hits = index.search(vectors, 100)
        found[task] = evaluate({key: dict(row) for key, row in zip(qrels("test"), hits, strict=True)}, qrels("test"))
    assert figures["best_ndcg@10"] == pytest.approx(found[INSTRUCTION]["ndcg@10"], abs=1e-6)
    assert figures["best_ndcg@10"] != pytest.approx(found[None]["ndcg@10"], abs=1e-3)
    assert recipe.evaluation is not None
    assert Retriever(encoder, index).search(TEXTS[0], k=1)
    long = CollectionEvaluator(recipe.evaluation, SETTINGS.tags)
    long._queries = {"q": "word " * 200}
    (asked,) = long._asked(encoder_of(recipe))
    assert asked.startswith(f"<instruct>{INSTRUCTION}\n<query>word")
    assert asked.endswith("\n<response>")


def encoder_of(recipe: TrainRecipe) -> Any:
    """The untrained model."""
    start = recipe.out.parent / "start"
    write_start_folder(recipe.backbone, start, bidirectional=False)
    add_special_tokens(start, SETTINGS.tags.tokens, seed=0)
    return build_encoder(start, replace(recipe.encoder, max_length=40), device="cpu")


def test_a_forecast_counts_the_tokens_of_the_examples(recipe: TrainRecipe) -> None:
    data = StepData(open_plan(recipe, training_arguments(recipe)), encoder_of(recipe), recipe)
    sizes = [sum(len(ids) for kind in ("query", "document") for ids in data[step][kind]) for step in range(4)]
    found = forecast(recipe)
    assert found.tokens_per_step == pytest.approx(sum(sizes) / 4)
    without = forecast(replace(recipe, in_context=replace(SETTINGS, max_examples=0)))
    assert found.tokens_per_step > 1.2 * without.tokens_per_step
    assert found.texts_per_step == without.texts_per_step == 24
    assert torch.is_tensor(data[0]["query"][0])
