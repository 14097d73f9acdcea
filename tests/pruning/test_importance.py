"""Importance of gates against weight times gradient of the stock model, and the start that it gives them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from drama_models.errors import RecipeError, TrainingError
from drama_models.recipe import load_recipe
from pruning.corpus import Corpus
from pruning.importance import (
    ImportanceSettings,
    gate_importance,
    layer_importance,
    start_from_importance,
    starting_log_alpha,
)
from pruning.learn_masks import LearnMasksRecipe, learn_masks, load_masks
from pruning.masked_model import MaskedCausalLM
from pruning.masks import Masks
from pruning.mixture import MixedSequences
from pruning.plan import PlanRecipe, plan
from pruning.shape import BackboneShape, TargetShape
from tests.conftest import make_llama
from tests.pruning.test_drop_layers import recipe_of, stock_loss
from tests.pruning.test_masked_model import make_llama as make_random_llama
from tests.pruning.test_stages import SMALL

if TYPE_CHECKING:
    from pathlib import Path

TARGET = TargetShape(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=50)
FEW: dict[str, Any] = {"sequences": 6, "layer_sequences": 5, "sequence_length": 32}


def masked(model: LlamaForCausalLM, target: TargetShape) -> MaskedCausalLM:
    source = BackboneShape.of(model.config)
    return MaskedCausalLM(model, Masks(source, source.cut_to(target)), 0)


def weight_times_gradient(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the weights that each gate scales, by hand from a stock backward pass: v, o, up, down, embedding and norms."""
    model.zero_grad()
    model(**batch).loss.backward()
    weights = model.named_parameters()
    products = {name: weight.detach() * weight.grad for name, weight in weights if weight.grad is not None}
    heads = BackboneShape.of(model.config).num_kv_heads
    hidden = products["model.embed_tokens.weight"].sum(0)
    if not model.config.tie_word_embeddings:
        hidden = hidden + products["model.norm.weight"]
    found: dict[str, list[torch.Tensor]] = {"layer": [], "head": [], "intermediate": []}
    for number in range(model.config.num_hidden_layers):
        layer = {name.split(".", 3)[3]: product for name, product in products.items() if f".layers.{number}." in name}
        value, up = layer["self_attn.v_proj.weight"].sum(1), layer["mlp.up_proj.weight"].sum(1)
        outputs = layer["self_attn.o_proj.weight"].sum(1) + layer["mlp.down_proj.weight"].sum(1)
        if model.config.attention_bias:
            value, up = value + layer["self_attn.v_proj.bias"], up + layer["mlp.up_proj.bias"]
            outputs = outputs + layer["self_attn.o_proj.bias"] + layer["mlp.down_proj.bias"]
        hidden = hidden + outputs + layer["input_layernorm.weight"] + layer["post_attention_layernorm.weight"]
        found["layer"].append(outputs.sum())
        found["head"].append(value.view(heads, -1).sum(1))
        found["intermediate"].append(up)
    return {"hidden": hidden} | {name: torch.stack(rows) for name, rows in found.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_importance_is_the_mean_square_of_weight_times_gradient(*, tied: bool, bias: bool) -> None:
    torch.manual_seed(1)
    stock = make_random_llama(tied=tied, bias=bias)
    texts = torch.randint(31, (3, 1, 9))
    batches = [{"input_ids": text, "labels": text} for text in texts]
    by_hand = [weight_times_gradient(stock, batch) for batch in batches]
    target = TargetShape(hidden_size=12, num_layers=2, num_heads=2, intermediate_size=10)
    found = gate_importance(masked(stock, target), batches)
    assert set(found) == {"hidden", "layer", "head", "intermediate"}
    for name, values in found.items():
        expected = torch.stack([products[name] for products in by_hand]).square().mean(0)
        torch.testing.assert_close(values, expected, rtol=2e-4, atol=1e-9, msg=name)


def test_a_unit_that_adds_nothing_has_no_importance_and_the_model_stays_as_it_was() -> None:
    stock = make_random_llama()
    stock.model.layers[1].mlp.down_proj.weight.data[:, 7] = 0
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    model = masked(stock, TargetShape(intermediate_size=10)).train()
    texts = torch.randint(31, (2, 1, 9))
    found = gate_importance(model, [{"input_ids": text, "labels": text} for text in texts])
    assert list(found) == ["intermediate"]
    assert (found["intermediate"] == 0).nonzero().tolist() == [[1, 7]]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_importance_of_layers_is_the_rise_of_the_loss_of_stock_models(corpus_folder: Path, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source")
    recipe = recipe_of(source, corpus_folder, tmp_path / "out")
    stock = LlamaForCausalLM.from_pretrained(source).eval()
    whole = stock_loss(stock, [0, 1, 2], recipe)
    expected = [stock_loss(stock, [each for each in range(3) if each != layer], recipe) - whole for layer in range(3)]
    data = MixedSequences(Corpus.open(corpus_folder), {}, 32, 5, recipe.seed)
    batches = [{name: row[None] for name, row in data[number].items()} for number in range(5)]
    found = layer_importance(masked(stock, TARGET), batches)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.floats(0, 1), st.integers(1, 3), st.floats(0.1, 8), st.integers(0, 999))
def test_every_row_starts_at_its_target_in_the_order_of_importance(
    units: int, share: float, rows: int, spread: float, seed: int
) -> None:
    keep = 1 + round(share * (units - 2))
    importance = (4 * torch.randn(rows, units, generator=torch.Generator().manual_seed(seed))).exp()
    found = starting_log_alpha(importance, keep, spread)
    assert found.abs().max() <= math.log(100) + 1e-6
    # P(gate > 0), and its range, from the spec: 1 - sigmoid(2/3 * ln(1/11) - log_alpha)
    open_ = 1 - torch.sigmoid(2 / 3 * math.log(1 / 11) - found.double())
    for size in open_.sum(-1).tolist():
        assert size == pytest.approx(min(max(keep, 0.047116 * units), 0.997982 * units), rel=1e-3)
    for scores, logits in zip(importance, found, strict=True):
        assert (logits[scores.argsort()].diff() >= 0).all()


def test_units_of_equal_importance_start_equal_and_none_needs_to_be_positive() -> None:
    found = starting_log_alpha(torch.tensor([[0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 1.0, 2.0]]), 3, 2.0)
    assert found[0].unique().numel() == 1
    assert torch.isfinite(found).all()
    assert found[1][0] == found[1][1] < found[1][2] < found[1][3]


@pytest.fixture(scope="module")
def measured(llama_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LearnMasksRecipe:
    """Masks that start from importance, and learn next to nothing."""
    out = tmp_path_factory.mktemp("importance") / "masks"
    recipe = LearnMasksRecipe(
        model=llama_folder, corpus=corpus_folder, out=out, target=TARGET, steps=1, sparsity_warmup_steps=0,
        mask_learning_rate=0.0, importance=ImportanceSettings(**FEW), **SMALL,
    )  # fmt: skip
    learn_masks(recipe)
    return recipe


def test_masks_start_from_the_importance_of_training_text(measured: LearnMasksRecipe) -> None:
    model = masked(LlamaForCausalLM.from_pretrained(measured.model), TARGET)
    data = MixedSequences(Corpus.open(measured.corpus), {}, 32, 6, measured.seed)
    batches = [{name: row[None] for name, row in data[number].items()} for number in range(6)]
    importance = gate_importance(model, batches) | {"layer": layer_importance(model, batches[:5])}
    state = load_file(measured.out / "masks.safetensors")
    for name, keep in {"hidden": 32, "layer": 2, "head": 2, "intermediate": 50}.items():
        expected = starting_log_alpha(importance[name], keep, 2.0)
        torch.testing.assert_close(state[f"log_alpha.{name}"], expected, rtol=1e-4, atol=1e-4, msg=name)
    figures = json.loads((measured.out / "provenance.json").read_text(encoding="utf-8"))["figures"]
    assert figures["measuring_tokens"] == (6 + 5 * 4) * 32
    assert all(
        size["expected"] == pytest.approx(size["target"], rel=1e-3) for size in figures["expected_sizes"].values()
    )
    assert load_masks(measured.out)["layer"].count_nonzero() == 2


def test_a_loss_that_is_not_a_number_is_one_sentence(measured: LearnMasksRecipe) -> None:
    model = masked(LlamaForCausalLM.from_pretrained(measured.model), TARGET)
    model.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"importance of \w+ is not finite"):
        start_from_importance(model, Corpus.open(measured.corpus), ImportanceSettings(**FEW), 0)


def test_the_layer_that_is_missed_least_goes(corpus_folder: Path, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source")
    stock = LlamaForCausalLM.from_pretrained(source)
    for module in (stock.model.layers[1].self_attn.o_proj, stock.model.layers[1].mlp.down_proj):
        module.weight.data *= 0.01
    model = masked(stock, TARGET)
    start_from_importance(model, Corpus.open(corpus_folder), ImportanceSettings(**FEW), 0)
    assert model.masks.log_alpha["layer"].argmin() == 1


@pytest.mark.parametrize("wrong", [{"layer_sequences": 7}, {"sequence_length": 1}, {"spread": 0}, {"sequences": 0}])
def test_settings_that_measure_nothing_are_refused(
    wrong: dict[str, Any], measured: LearnMasksRecipe, tmp_path: Path
) -> None:
    folders = {"model": str(measured.model), "corpus": str(measured.corpus), "out": str(tmp_path / "out")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(folders | {"importance": FEW | wrong}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"layer_sequences=\d must be from 1 to sequences"):
        load_recipe(LearnMasksRecipe, path)


def test_the_plan_counts_what_is_measured(measured: LearnMasksRecipe, tmp_path: Path) -> None:
    path = tmp_path / "learn.yaml"
    target = {"hidden_size": 36, "num_layers": 2}
    path.write_text(yaml.safe_dump({"target": target, "importance": FEW}), encoding="utf-8")
    made = plan(PlanRecipe(model=measured.model, target=str(path)))
    assert made.measuring_tokens == (6 + 5 * 4) * 32
    assert "tokens: 832 to measure layers and units, " in made.lines()[-1]


def test_without_layers_to_drop_none_is_measured() -> None:
    source = BackboneShape.of(make_random_llama().config)
    assert ImportanceSettings(**FEW).tokens(source, replace(source, hidden_size=8)) == 6 * 32
