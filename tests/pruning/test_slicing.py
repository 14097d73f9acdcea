"""Sliced folders: stock classes load them, their logits are the masked model's, everything else is carried over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from drama_models.errors import ModelFolderError, ShapeError
from drama_models.provenance import read_provenance
from pruning.kv_heads import expand_folder
from pruning.masked_model import MaskedCausalLM
from pruning.masked_weights import MaskValues
from pruning.masks import Masks
from pruning.model_folder import HEADER_ROOM, write_weights
from pruning.shape import BackboneShape, TargetShape
from pruning.slicing import slice_folder, slice_tensor
from tests.conftest import make_llama

TARGET = TargetShape(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=50)
IDS = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(0))


def learned(folder: Path) -> Masks:
    """Masks with different values everywhere, as training would leave them."""
    source = BackboneShape.of(AutoConfig.from_pretrained(folder))
    masks = Masks(source, source.cut_to(TARGET))
    for log_alpha in masks.log_alpha.values():
        log_alpha.data = torch.randn_like(log_alpha) * 2
    return masks


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sliced_folder_equals_the_masked_model(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    source = make_llama(tmp_path / "source", tie_word_embeddings=tied)
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(source)
    masks = learned(source)
    values = masks.deterministic(at_target=True)
    shape = slice_folder(source, values, tmp_path / "sliced", {"note": "test"})
    assert (shape.hidden_size, shape.num_layers, shape.num_heads, shape.num_kv_heads) == (32, 2, 4, 2)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced", dtype=torch.float32).eval()
    assert type(small) is LlamaForCausalLM
    stock = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = MaskedCausalLM(stock, masks, 0).call_with(values, input_ids=IDS).logits
        found = small(input_ids=IDS).logits
    # bfloat16 storage rounds every folded weight to 8 bits
    tolerance = 2e-5 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-3)


def test_configuration_and_tokenizer_are_carried_over(llama_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 128
    (source / "config.json").write_text(json.dumps(config | {"rope_parameters": rope, "rms_norm_eps": 3e-4}))
    slice_folder(source, learned(source).deterministic(at_target=True), tmp_path / "sliced", {})
    made = json.loads((tmp_path / "sliced" / "config.json").read_text(encoding="utf-8"))
    changed = {key for key in made if made[key] != (config | {"rope_parameters": rope, "rms_norm_eps": 3e-4}).get(key)}
    assert changed == {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"
    }  # fmt: skip
    text = "Average the numbers of an array."
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "sliced")]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    record = read_provenance(tmp_path / "sliced")
    assert record is not None
    assert record["stage"] == "pruning.slice"
    assert len(record["figures"]["kept_layers"]) == 2


def test_masks_that_do_not_fit_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    values = learned(llama_folder).deterministic(at_target=True)
    with pytest.raises(ShapeError, match=r"hidden mask has shape \(40,\), this model needs \(48,\)"):
        slice_folder(llama_folder, values | {"hidden": torch.ones(40)}, tmp_path / "out", {})
    with pytest.raises(ShapeError, match="No dimension is called 'kv_group'; masks are by hidden, layer, head"):
        slice_folder(llama_folder, values | {"kv_group": torch.ones(3, 3)}, tmp_path / "out", {})
    uneven = values["intermediate"].clone()
    uneven[values["layer"].nonzero()[0], values["intermediate"].argmax(dim=1)[values["layer"].nonzero()[0]]] = 0
    with pytest.raises(ShapeError, match="every layer must have the same numbers"):
        slice_folder(llama_folder, values | {"intermediate": uneven}, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_unreadable_weights_are_named(llama_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    values = learned(source).deterministic(at_target=True)
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is not a safetensors file, or is truncated"):
        slice_folder(source, values, tmp_path / "out", {})
    path.unlink()
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is missing"):
        slice_folder(source, values, tmp_path / "out", {})


def test_frequencies_of_old_checkpoints_are_left_out_and_other_tensors_named(
    llama_folder: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    values, weights = learned(source).deterministic(at_target=True), load_file(source / "model.safetensors")
    slice_folder(source, values, tmp_path / "plain", {})
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(3)}
    save_file(weights | old, source / "model.safetensors")
    slice_folder(source, values, tmp_path / "old", {})
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "old")]
    assert files[0] == files[1]
    save_file(weights | {"model.layers.0.adapter.weight": torch.ones(8)}, source / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"'model\.layers\.0\.adapter\.weight' is not part of a Llama"):
        slice_folder(source, values, tmp_path / "other", {})


def test_an_expanded_folder_gives_the_same_logits(llama_folder: Path, tmp_path: Path) -> None:
    expand_folder(llama_folder, tmp_path / "wide", 6)
    narrow, wide = (AutoModelForCausalLM.from_pretrained(folder) for folder in (llama_folder, tmp_path / "wide"))
    assert (narrow.config.num_key_value_heads, wide.config.num_key_value_heads) == (3, 6)
    with torch.no_grad():
        torch.testing.assert_close(wide(input_ids=IDS).logits, narrow(input_ids=IDS).logits)


def test_weights_written_one_by_one_are_what_safetensors_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.{dtype}".replace("torch.", ""): torch.randn(shape, generator=generator).to(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for name, shape in (("matrix", (5, 3)), ("vector", (7,)), ("number", ()), ("nothing", (0, 4)))
    }
    assert write_weights(tmp_path / "model.safetensors", weights.items()) == 3 * (15 + 7 + 1)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == weights.keys()
    for name, weight in weights.items():
        assert read[name].dtype == weight.dtype
        torch.testing.assert_close(read[name], weight, rtol=0, atol=0)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_more_names_than_the_header_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="2 tensors are more than one file can name"):
        write_weights(tmp_path / "m", [("a" * HEADER_ROOM, torch.zeros(1)), ("b", torch.zeros(1))])


def test_cutting_in_parts_changes_nothing(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = learned(llama_folder)
    values = MaskValues(masks.deterministic(at_target=True), masks.source, tied=True)
    weights = AutoModelForCausalLM.from_pretrained(llama_folder).state_dict()
    whole = {name: slice_tensor(name, weight, values) for name, weight in weights.items()}
    monkeypatch.setattr("pruning.slicing.ROWS_AT_ONCE", 7)
    for name, weight in weights.items():
        torch.testing.assert_close(slice_tensor(name, weight, values), whole[name], rtol=0, atol=0, msg=name)
