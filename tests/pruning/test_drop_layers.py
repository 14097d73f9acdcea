"""Layers that go before masks are learned: those a model misses least, by the losses of stock models without them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from drama_models.errors import ShapeError
from drama_models.provenance import chain, read_provenance
from drama_models.recipe import load_recipe, run_command
from pruning.__main__ import COMMANDS
from pruning.corpus import Corpus
from pruning.drop_layers import DropLayersRecipe, drop_layers
from pruning.learn_masks import MASKS
from pruning.mixture import MixedSequences
from pruning.plan import PlanRecipe, plan
from pruning.run import RunRecipe, run
from tests.conftest import make_llama
from tests.pruning.test_run import FEW

if TYPE_CHECKING:
    from pathlib import Path


def recipe_of(model: Path, corpus: Path, out: Path, **changes: Any) -> DropLayersRecipe:
    settings: dict[str, Any] = {"num_layers": 2, "sequences": 5, "sequence_length": 32, "batch_size": 2}
    return DropLayersRecipe(model=model, corpus=corpus, out=out, **(settings | changes))


def stock_loss(model: LlamaForCausalLM, layers: list[int], recipe: DropLayersRecipe) -> float:
    """Mean loss over the recipe's sequences of a stock model that is built with these layers only."""
    config = type(model.config)(**(model.config.to_dict() | {"num_hidden_layers": len(layers)}))
    small = LlamaForCausalLM(config).eval()
    state = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    for number, layer in enumerate(layers):
        state |= {
            f"model.layers.{number}.{name}": value for name, value in model.model.layers[layer].state_dict().items()
        }
    small.load_state_dict(state)
    data = MixedSequences(Corpus.open(recipe.corpus), {}, recipe.sequence_length, recipe.sequences, recipe.seed)
    with torch.no_grad():
        return sum(small(**{name: row[None] for name, row in data[at].items()}).loss.item() for at in range(5)) / 5


def test_losses_are_those_of_stock_models_and_the_lowest_goes(corpus_folder: Path, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source", num_hidden_layers=4)
    recipe = recipe_of(source, corpus_folder, tmp_path / "out")
    figures = drop_layers(recipe)["figures"]
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    kept = [0, 1, 2, 3]
    for found in figures["losses"]:
        expected = {layer: stock_loss(model, [each for each in kept if each != layer], recipe) for layer in kept}
        assert {int(layer): loss for layer, loss in found["loss"].items()} == pytest.approx(expected, abs=2e-5)
        assert found["dropped"] == min(expected, key=expected.__getitem__)
        kept.remove(found["dropped"])
    assert figures["kept_layers"] == kept
    assert figures["tokens"] == (4 + 3) * 5 * 32
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert small.config.num_hidden_layers == 2
    for number, layer in enumerate(kept):
        ours, theirs = small.model.layers[number].state_dict(), model.model.layers[layer].state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_without_a_layer_that_adds_nothing_the_loss_is_that_of_the_whole(corpus_folder: Path, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    model.save_pretrained(source)
    recipe = recipe_of(source, corpus_folder, tmp_path / "out")
    (found,) = drop_layers(recipe)["figures"]["losses"]
    whole = stock_loss(model, [0, 1, 2], recipe)
    assert found["loss"]["1"] == pytest.approx(whole, abs=2e-5)
    assert all(abs(found["loss"][other] - whole) > 1e-3 for other in "02")


def test_the_command_makes_the_folder(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folders = [f"--model={llama_folder}", f"--corpus={corpus_folder}", f"--out={out}"]
    few = ["--num_layers=1", "--sequences=2", "--sequence_length=32"]
    assert run_command("pruning", COMMANDS, ["drop-layers", *folders, *few]) == 0
    assert capsys.readouterr().out.startswith(f"made {out}: layers ")
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1


@pytest.mark.parametrize("wanted", [0, 3])
def test_a_number_that_is_no_cut_is_refused(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path, wanted: int
) -> None:
    with pytest.raises(ShapeError, match=rf"has 3 layers and cannot be cut to {wanted}; set num_layers to 1 to 2"):
        drop_layers(recipe_of(llama_folder, corpus_folder, tmp_path / "out", num_layers=wanted))
    assert not (tmp_path / "out").exists()


def test_a_run_drops_layers_and_learns_the_rest(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    target = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50}
    settings = {
        "drop_layers": {"sequences": 4, "sequence_length": 32}, "force": True, "recover": FEW,
        "learn_masks": FEW | {"target": target, "sparsity_warmup_steps": 1},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    recipe = load_recipe(RunRecipe, path, model=llama_folder, corpus=corpus_folder, out=tmp_path / "run")
    shape = run(recipe)
    planned = plan(PlanRecipe(model=llama_folder, target=str(path)))
    assert shape == planned.target
    assert planned.trained == replace(planned.source, num_layers=2)
    assert any(line.startswith("shallow") for line in planned.lines())
    measured = (read_provenance(recipe.out / "shallow") or {})["figures"]["tokens"]
    assert planned.measuring_tokens == measured
    assert planned.lines()[-1].startswith(f"tokens: {measured:,} to measure layers and units, ")
    stages = [stage["stage"] for stage in chain(read_provenance(recipe.backbone))]
    assert stages == ["pruning.drop_layers", "pruning.learn_masks", "pruning.slice", "pruning.recover"]
    with safe_open(tmp_path / "run" / "masks" / MASKS, framework="pt") as masks:
        assert not [name for name in masks.keys() if "layer" in name]  # noqa: SIM118
    assert run(recipe) == shape  # done before
