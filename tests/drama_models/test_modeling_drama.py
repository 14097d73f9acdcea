"""Attention direction, padding and persistence of DramaModel, against stock transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaModel

from drama_models import modeling_drama
from drama_models.modeling_drama import DramaModel

KERNELS = ["eager", "sdpa", "flex_attention"]
IDS = torch.tensor([[5, 9, 30, 7, 11, 2], [6, 8, 40, 12, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def states(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden


@pytest.fixture(params=[True, False], ids=["native masks", "own masks"])
def masks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of making masks: transformers >= 5.2 follows the configuration, older versions get ours."""
    monkeypatch.setattr(modeling_drama, "FOLLOWS_CONFIG", request.param)
    return bool(request.param)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_late_token_changes_the_first_state(llama_folder: Path, masks: bool, kernel: str) -> None:
    model = DramaModel.from_pretrained(llama_folder, attn_implementation=kernel).eval()
    changed = IDS.clone()
    changed[:, 3] += 1
    for mask in (None, torch.ones_like(IDS), MASK):
        difference = (states(model, IDS, mask) - states(model, changed, mask))[:, 0].abs().amax(dim=-1)
        assert (difference > 1e-3).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone(llama_folder: Path, masks: bool, kernel: str, side: str) -> None:
    model = DramaModel.from_pretrained(llama_folder, attn_implementation=kernel).eval()
    short = IDS[1:, :4]
    alone = states(model, short)
    padding = torch.full((1, 2), 3)
    columns = [padding, short] if side == "left" else [short, padding]
    batch = torch.cat([IDS[:1], torch.cat(columns, dim=1)])
    mask = torch.ones_like(batch)
    mask[1, : 2 if side == "left" else None] = 0 if side == "left" else 1
    if side == "right":
        mask[1, 4:] = 0
    padded = states(model, batch, mask)[1:, mask[1].bool()]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(states(model, batch, mask)[:1], states(model, IDS[:1]), atol=1e-5, rtol=0)


def test_every_kernel_gives_the_same_states(llama_folder: Path) -> None:
    reference = states(DramaModel.from_pretrained(llama_folder, attn_implementation="eager").eval(), IDS, MASK)
    for kernel in KERNELS[1:]:
        model = DramaModel.from_pretrained(llama_folder, attn_implementation=kernel).eval()
        found = states(model, IDS, MASK)
        torch.testing.assert_close(found[MASK.bool()], reference[MASK.bool()], atol=1e-5, rtol=1e-4)


def test_own_masks_equal_native_ones(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DramaModel.from_pretrained(llama_folder).eval()
    native = states(model, IDS, MASK)
    monkeypatch.setattr(modeling_drama, "FOLLOWS_CONFIG", False)
    torch.testing.assert_close(states(model, IDS, MASK)[MASK.bool()], native[MASK.bool()], atol=1e-6, rtol=0)


def test_bfloat16_stays_near_float32(llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    texts = ["put two tables together", "digest of a file"]
    full = DramaModel.from_pretrained(llama_folder).eval().encode_documents(tokenizer, texts)
    half = DramaModel.from_pretrained(llama_folder, dtype=torch.bfloat16).eval().encode_documents(tokenizer, texts)
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits; three layers of it stay within a percent of the direction
    assert (full * half).sum(dim=-1).min() > 0.99


def test_what_is_saved_loads_as_the_same_model_without_our_code(llama_folder: Path, tmp_path: Path) -> None:
    model = DramaModel.from_pretrained(llama_folder).eval()
    model.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    assert type(stock) is LlamaModel
    torch.testing.assert_close(states(stock, IDS, MASK)[MASK.bool()], states(model, IDS, MASK)[MASK.bool()])
    again = DramaModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(states(again, IDS, MASK), states(model, IDS, MASK))


def test_remote_code_of_a_saved_folder_is_the_same_model(llama_folder: Path, tmp_path: Path) -> None:
    model = DramaModel.from_pretrained(llama_folder).eval()
    model.save_pretrained(tmp_path)
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert type(remote).__name__ == "DramaModel"
    assert type(remote) is not DramaModel  # loaded from the file in the folder
    torch.testing.assert_close(states(remote, IDS, MASK), states(model, IDS, MASK))


def test_a_direction_that_is_not_honoured_is_refused(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transformers that ignores the configuration would do: the stock causal forward pass."""
    monkeypatch.setattr(DramaModel, "forward", causal_forward)
    with pytest.raises(ValueError, match="attends causally here"):
        DramaModel.from_pretrained(llama_folder)


def causal_forward(self: DramaModel, **inputs: Any) -> Any:
    self.config.is_causal = True
    return LlamaModel.forward(self, **inputs)


def test_missing_weights_are_refused_instead_of_drawn_at_random(llama_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(llama_folder / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="lacks weights"):
        DramaModel.from_pretrained(tmp_path)


def test_an_unknown_kernel_is_refused_on_old_transformers(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DramaModel.from_pretrained(llama_folder)
    monkeypatch.setattr(modeling_drama, "FOLLOWS_CONFIG", False)
    model.config._attn_implementation = "paged|sdpa"
    with pytest.raises(ValueError, match="use one of eager, sdpa"):
        model(input_ids=IDS)


def test_encoding_follows_the_published_rules(llama_folder: Path) -> None:
    """BOS, prompt, text and EOS; the mean over all of them; cut to dim, then normalised: written out by hand."""
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    model = DramaModel.from_pretrained(llama_folder).eval()
    text = "shortest way between two nodes"
    ids = [tokenizer.bos_token_id, *tokenizer("Query: " + text)["input_ids"], tokenizer.eos_token_id]
    mean = states(model, torch.tensor([ids]))[0].mean(dim=0)
    expected = mean[:16] / mean[:16].norm()
    found = model.encode_queries(tokenizer, [text, "a much longer query that makes the first one padded"], dim=16)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    assert found.shape == (2, 16)
    single = model.encode_documents(tokenizer, text)
    assert single.shape == (1, 48)
    assert not torch.allclose(single[0, :16], expected, atol=1e-2)  # documents have no prompt


def test_truncated_texts_keep_their_eos(llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    model = DramaModel.from_pretrained(llama_folder).eval()
    text = "one two three four five six seven eight nine ten"
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"][:6], tokenizer.eos_token_id]
    expected = torch.nn.functional.normalize(states(model, torch.tensor([ids]))[0].mean(dim=0), dim=0)
    torch.testing.assert_close(model.encode_documents(tokenizer, text, max_seq_len=8)[0], expected)


def test_no_texts_and_impossible_sizes(llama_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    model = DramaModel.from_pretrained(llama_folder).eval()
    assert model.encode_queries(tokenizer, []).shape == (0, 48)
    assert model.encode_documents(tokenizer, [], dim=8).shape == (0, 8)
    for dim in (0, 49):
        with pytest.raises(ValueError, match="between 1 and the hidden size, 48"):
            model.encode_documents(tokenizer, ["text"], dim=dim)
