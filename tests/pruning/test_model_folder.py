"""Source folders: what is whole loads as stock does, and whatever is not is refused before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from drama_models.errors import ModelFolderError
from pruning.drop_layers import DropLayersRecipe, drop_layers
from pruning.kv_heads import expand_folder
from pruning.learn_masks import LearnMasksRecipe, learn_masks
from pruning.model_folder import load_causal_model
from pruning.plan import PlanRecipe, plan
from pruning.recover import RecoverRecipe, recover
from pruning.reference_loss import ReferenceLossRecipe, reference_losses
from pruning.shape import TargetShape
from tests.conftest import make_llama

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(llama_folder, tmp_path / "model")


def change_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(model / WEIGHTS)
    change(state)
    save_file(state, model / WEIGHTS, metadata={"format": "pt"})


def truncate(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) // 2])


def to_pickle(model: Path) -> None:
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()


UP = "model.layers.0.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (to_pickle, r"weights as pickle \(pytorch_model\.bin\), which is never loaded"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), r"model\.safetensors is missing"),
    "truncated": (truncate, r"model\.safetensors has [\d,]+ bytes where its header announces"),
    "a layer too many": (lambda model: change_config(model, num_hidden_layers=4), r"no tensor 'layers\.3\."),
    "another shape": (
        lambda model: change_config(model, intermediate_size=96),
        r"has shape .* where config\.json asks",
    ),
    "no head": (lambda model: change_config(model, tie_word_embeddings=False), "no weight 'lm_head.weight'"),
    "no biases": (lambda model: change_config(model, mlp_bias=True), r"no tensor 'layers\.0\.mlp\..*bias'"),
    "no such activation": (lambda model: change_config(model, hidden_act="bend"), "No model can be made .*'bend'"),
    "not a number": (
        lambda model: change_weights(model, lambda state: state[UP][3, 1].fill_(float("nan"))),
        rf"weight '{UP}' is not finite",
    ),
    "infinite": (
        lambda model: change_weights(model, lambda state: state[UP][3, 1].fill_(float("-inf"))),
        rf"weight '{UP}' is not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_is_not_whole_is_not_loaded(model: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(model)
    with pytest.raises(ModelFolderError, match=message):
        load_causal_model(model)


def use(stage: str, model: Path, corpus: Path, out: Path) -> None:
    """Run a stage that reads a source folder."""
    text: dict[str, Any] = {"model": model, "corpus": corpus, "out": out, "sequence_length": 32}
    stages: dict[str, Callable[[], object]] = {
        "learn-masks": lambda: learn_masks(
            LearnMasksRecipe(**text, target=TargetShape(intermediate_size=48), steps=1, batch_size=2)
        ),
        "recover": lambda: recover(RecoverRecipe(**text, steps=1, batch_size=2)),
        "drop-layers": lambda: drop_layers(DropLayersRecipe(**text, num_layers=2, sequences=2)),
        "reference-loss": lambda: reference_losses(ReferenceLossRecipe(**text)),
        "expand-kv-heads": lambda: expand_folder(model, out, 6),
        "plan": lambda: plan(PlanRecipe(model=model)),
    }
    stages[stage]()


@pytest.mark.parametrize("stage", ["learn-masks", "recover", "drop-layers", "reference-loss", "expand-kv-heads"])
@pytest.mark.parametrize("damage", ["pickle", "a layer too many"])
def test_no_stage_takes_a_model_that_is_not_whole(
    model: Path, corpus_folder: Path, tmp_path: Path, stage: str, damage: str
) -> None:
    change, message = DAMAGES[damage]
    change(model)
    with pytest.raises(ModelFolderError, match=message):
        use(stage, model, corpus_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("stage", ["learn-masks", "recover", "drop-layers", "reference-loss", "plan"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"model_type": "llama"}', "has no usable hidden_size"),
        ({"hidden_size": 47}, "is not a configuration that transformers reads .*not a multiple"),
    ],
)
def test_a_damaged_configuration_is_refused(
    model: Path, corpus_folder: Path, tmp_path: Path, stage: str, text: str | dict[str, object], message: str
) -> None:
    if isinstance(text, dict):
        change_config(model, **text)
    else:
        (model / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=rf"config\.json {message}"):
        use(stage, model, corpus_folder, tmp_path / "out")


@pytest.mark.parametrize("stage", ["learn-masks", "recover"])
def test_a_tokenizer_that_could_not_be_written_is_refused_before_training(
    model: Path, corpus_folder: Path, tmp_path: Path, stage: str
) -> None:
    (model / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"tokenizer of .* is not one that transformers reads"):
        use(stage, model, corpus_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}])
def test_a_whole_model_is_the_stock_one_in_float32(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_llama(tmp_path / "model", **changes)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / WEIGHTS).unlink()
    stock.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = load_causal_model(folder).state_dict()
    assert found.keys() == stock.state_dict().keys()
    for name, value in stock.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.float()), name
