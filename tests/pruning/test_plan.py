"""The plan of a pruning run against the published parameter counts and stock transformers models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drama_models.errors import ShapeError
from pruning.plan import PlanRecipe, plan
from pruning.presets import PRESETS

LLAMA_1B = LlamaConfig(
    hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
    intermediate_size=8192, vocab_size=128_256, tie_word_embeddings=True,
)  # fmt: skip
LLAMA_7B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008,
    vocab_size=32_000, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def llama_1b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-1b")
    LLAMA_1B.save_pretrained(folder)
    return folder


def test_counts_are_the_published_ones(llama_1b: Path) -> None:
    made = plan(PlanRecipe(model=llama_1b))
    assert made.source.non_embedding_parameters == 973_146_112
    assert made.source.total_parameters(128_256, tied=True) == 1_235_814_400
    assert made.expanded is not None
    assert made.expanded.non_embedding_parameters == 1_073_809_408
    assert made.target.non_embedding_parameters == 113_265_408
    assert made.target.num_kv_heads == 12
    assert made.mask_tokens == 3200 * 32 * 4096
    assert made.mask_tokens + made.recover_tokens == pytest.approx(25e9, rel=0.01)  # arXiv 2502.18460, section 4.3
    grouped = plan(PlanRecipe(model=llama_1b, target="drama-base-gqa"))
    assert grouped.expanded is None
    assert grouped.target.non_embedding_parameters == 102_648_576
    assert plan(PlanRecipe(model=llama_1b, target="drama-large")).target.non_embedding_parameters == 265_323_520


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_a_stock_model(name: str, llama_1b: Path, tmp_path: Path) -> None:
    config, folder = LLAMA_1B, llama_1b
    if name.startswith("sheared"):
        config, folder = LLAMA_7B, tmp_path
        config.save_pretrained(folder)
    target = plan(PlanRecipe(model=folder, target=name)).target
    sizes: dict[str, Any] = {
        "hidden_size": target.hidden_size, "num_hidden_layers": target.num_layers, "head_dim": target.head_dim,
        "num_attention_heads": target.num_heads, "num_key_value_heads": target.num_kv_heads,
        "intermediate_size": target.intermediate_size,
    }  # fmt: skip
    tied = config.tie_word_embeddings
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=config.vocab_size, tie_word_embeddings=tied))
    assert target.total_parameters(config.vocab_size, tied=tied) == model.num_parameters()


def test_a_recipe_can_be_planned_and_the_command_prints_it(llama_1b: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "learn_masks.yaml"
    recipe.write_text("steps: 10\nbatch_size: 2\nsequence_length: 64\ntarget: {num_layers: 4}\n", encoding="utf-8")
    made = plan(PlanRecipe(model=llama_1b, target=str(recipe)))
    assert (made.target.num_layers, made.target.hidden_size, made.mask_tokens) == (4, 2048, 1280)
    command = [sys.executable, "-m", "pruning", "plan", str(llama_1b), "--target"]
    result = subprocess.run([*command, "drama-base"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "113,265,408" in result.stdout
    assert f"next: python -m pruning run drama-base --model {llama_1b}" in result.stdout
    result = subprocess.run([*command, "drama-huge"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no preset and no recipe file called 'drama-huge'; presets: drama-base-gqa" in result.stderr


def test_a_source_that_is_too_small_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ShapeError, match="hidden_size=768 cannot be cut from a source with hidden_size=48"):
        plan(PlanRecipe(model=llama_folder))


def test_a_target_that_cuts_nothing_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "learn_masks.yaml"
    recipe.write_text("target: {num_layers: 3}\n", encoding="utf-8")
    with pytest.raises(ShapeError, match=r"has all the sizes of the source .*, so nothing would be cut; lower some"):
        plan(PlanRecipe(model=llama_folder, target=str(recipe)))
