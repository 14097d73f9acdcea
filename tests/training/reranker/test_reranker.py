"""Scores against the stock language model's word for "Yes", and compression against a loop over groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from drama_models.errors import ModelFolderError
from tests.conftest import TEXTS
from tests.drama_models.published_models import sentence_piece
from training.reranker.compression import compress_passages
from training.reranker.inputs import SAME_MEANING, pair_inputs
from training.reranker.layerwise_model import LayerwiseReranker
from training.reranker.reranker import Depth, Reranker, padded

PAIRS = [(text[:14], " ".join(TEXTS[number : number + 1 + number % 4])) for number, text in enumerate(TEXTS[:9])]
YES = 7


@pytest.fixture(scope="module")
def language_model() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=420,
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        initializer_range=0.3,
        sliding_window=40,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(language_model: Gemma2ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out like the published one, its heads as training begins."""
    folder = tmp_path_factory.mktemp("models") / "reranker"
    model = LayerwiseReranker(language_model.config, start_layer=2)
    model.model.load_state_dict(language_model.model.state_dict())
    model.start_heads_from(language_model.lm_head.weight[YES])
    sentence_piece([]).save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    named = {"start_layer": 2, "layer_sep": 1, "model_type": "cost_wise_gemma", "auto_map": {"AutoModel": "x.Y"}}
    text = json.dumps(language_model.config.to_dict() | named)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker.from_folder(folder, device="cpu")


def stock_scores(model: Gemma2ForCausalLM, reranker: Reranker, layer: int) -> list[float]:
    """Each pair alone through the stock model with so many layers: what it gives "Yes" as the next word."""
    kept = Gemma2ForCausalLM(model.config).eval()
    kept.load_state_dict(model.state_dict())
    kept.model.layers = kept.model.layers[:layer]
    kept.config.num_hidden_layers = layer
    rows = pair_inputs(PAIRS, reranker._tokenizer, bos="<s>")
    with torch.no_grad():
        scores = [float(kept(input_ids=torch.tensor([row.ids])).logits[0, -1, YES]) for row in rows]
    model.config.num_hidden_layers = 5  # the two share it
    return scores


@pytest.mark.parametrize("layer", [2, 4, 5])
def test_a_new_reranker_scores_as_its_language_model_says_yes(
    language_model: Gemma2ForCausalLM, reranker: Reranker, layer: int
) -> None:
    ours = reranker.score(PAIRS, depth=Depth(layer=layer))
    np.testing.assert_allclose(ours, stock_scores(language_model, reranker, layer), atol=1e-4)
    assert ours.std() > 0.01


def test_all_depths_come_from_one_pass(reranker: Reranker) -> None:
    given = padded(pair_inputs(PAIRS, reranker._tokenizer, bos="<s>"))
    with torch.no_grad():
        scores = reranker.model(*given, cutoff_layers=[5, 2, 3])
        with pytest.warns(UserWarning, match=r"Layers \[1, 9\] have no head and are left out; heads are at 2, 3, 4, 5"):
            assert list(reranker.model(*given, cutoff_layers=[9, 3, 1])) == [3]
    assert list(scores) == [2, 3, 5]
    for layer, together in scores.items():
        np.testing.assert_allclose(together, reranker.score(PAIRS, depth=Depth(layer=layer)), atol=1e-4)
    with pytest.raises(ValueError, match=r"cutoff_layers=\[1\] has no layer with a head; heads are at 2, 3, 4, 5"):
        reranker.score(PAIRS, depth=Depth(layer=1))


def test_scores_do_not_depend_on_the_batch_also_when_compressed(reranker: Reranker) -> None:
    depth = Depth(layer=5, compress_layers=(2, 4), compress_ratio=4)
    together = reranker.score(PAIRS, depth=depth)
    alone = np.concatenate([reranker.score([pair], depth=depth) for pair in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together - reranker.score(PAIRS)).max() > 1e-3
    chances = reranker.score(PAIRS, depth=depth, as_probability=True)
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-together)), atol=1e-6)
    assert np.abs(reranker.score(PAIRS, prompt=SAME_MEANING) - reranker.score(PAIRS)).max() > 1e-3
    assert reranker.score([]).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 11), st.integers(1, 3)), min_size=1, max_size=4),
    ratio=st.integers(1, 8),
)
def test_compression_is_the_mean_of_each_group(shapes: list[tuple[int, int, int]], ratio: int) -> None:
    longest = max(map(sum, shapes)) + 2
    hidden = torch.randn(len(shapes), longest, 3, dtype=torch.float64)
    mask = (torch.arange(longest) < torch.tensor([sum(shape) for shape in shapes])[:, None]).long()
    query, _, prompt = torch.tensor(shapes).T
    states, kept = compress_passages(hidden, mask, query, prompt, ratio)
    for row, (before, inside, behind) in enumerate(shapes):
        passage = hidden[row, before : before + inside]
        expected = [*hidden[row, :before], *(part.mean(0) for part in passage.split(ratio) if len(part))]
        expected += hidden[row, before + inside : before + inside + behind]
        assert kept[row].sum() == len(expected)
        torch.testing.assert_close(states[row, : len(expected)], torch.stack(expected))
        assert not states[row, len(expected) :].any()


def test_compression_refuses_left_padding_and_impossible_lengths() -> None:
    hidden, one, left = torch.zeros(1, 4, 2), torch.tensor([1]), torch.tensor([[0, 1, 1, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        compress_passages(hidden, left, one, one, 2)
    with pytest.raises(ValueError, match="ratio=0 must be at least 1"):
        compress_passages(hidden, left.flip(1), one, one, 0)
    with pytest.raises(ValueError, match="rows at least as long as their query and prompt"):
        compress_passages(hidden, left.flip(1), one * 3, one, 2)


def test_every_head_and_layer_gets_a_gradient(folder: Path) -> None:
    model = LayerwiseReranker.from_folder(folder).train()
    tokenizer = Reranker.from_folder(folder, device="cpu")._tokenizer
    given = padded(pair_inputs(PAIRS[:4], tokenizer, bos="<s>"))
    scores = model(*given, cutoff_layers=[2, 3, 4, 5], compress_layers=[2], compress_ratio=2)
    torch.stack(list(scores.values())).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    gradients = [weight.grad for name, weight in model.named_parameters() if name.startswith("lm_head")]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert len(gradients) == 4


def test_a_folder_that_is_no_reranker_is_named(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for changes, message in (
        ({"start_layer": None}, r"config\.json has no start_layer and layer_sep"),
        ({"start_layer": 3}, r"weights of .* do not fit its config\.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(ModelFolderError, match=message):
            Reranker.from_folder(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="start_layer=6 must be between 1 and 5"):
        LayerwiseReranker(Gemma2Config(num_hidden_layers=5), start_layer=6)
