"""Packed attention against the same stock model with padding: states, and gradients of every weight."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from drama_models.attention import PACKED, enable_packing, first_position, pack, packed_attention
from drama_models.modeling_drama import DramaModel
from drama_models.packing import pool_packed

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
BIDIRECTIONAL: dict[str, Any] = GROUPED | {"is_causal": False}
LENGTHS = [5, 9, 9, 9, 1, 3, 17, 3]
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "causal llama": lambda: LlamaModel(LlamaConfig(**GROUPED)),
    "bidirectional llama": lambda: LlamaModel(LlamaConfig(**BIDIRECTIONAL)),
    "drama": lambda: DramaModel(LlamaConfig(**GROUPED)),
    "mistral": lambda: MistralModel(MistralConfig(**GROUPED, sliding_window=None)),
    "mistral with a window of 4": lambda: MistralModel(MistralConfig(**GROUPED, sliding_window=4)),
    "bidirectional mistral with a window of 4": lambda: MistralModel(MistralConfig(**BIDIRECTIONAL, sliding_window=4)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**{k: v for k, v in GROUPED.items() if k != "head_dim"})),
    "gemma2": lambda: Gemma2Model(Gemma2Config(**GROUPED, attn_logit_softcapping=2.0, sliding_window=4)),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**GROUPED, sliding_window=4)),
    "bidirectional gemma3": lambda: Gemma3TextModel(
        Gemma3TextConfig(**GROUPED, sliding_window=4, use_bidirectional_attention=True)
    ),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZES, local_attention=8)),
    "bert": lambda: BertModel(BertConfig(**SIZES), add_pooling_layer=False),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES | {"pad_token_id": 1}), add_pooling_layer=False),
}


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = KINDS[request.param]()
    return made.eval()


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 50, (length,), generator=generator) for length in LENGTHS]


def padded_states(model: PreTrainedModel, ids: list[Tensor]) -> Tensor:
    """The stock way: a rectangle and a mask; rows of padding are cut off afterwards."""
    padding = int(model.config.pad_token_id)
    rectangle = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=padding)
    mask = torch.arange(rectangle.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    states = model(input_ids=rectangle, attention_mask=mask.long()).last_hidden_state
    return torch.cat([row[: len(real)] for row, real in zip(states, ids, strict=True)])


def gradients(model: PreTrainedModel, states: Tensor) -> dict[str, Tensor]:
    """Of an arbitrary smooth function of all states."""
    model.zero_grad()
    (states.sin() * torch.linspace(-1, 1, states.shape[1])).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_states_and_gradients_are_those_of_the_padded_stock_model(model: PreTrainedModel) -> None:
    expected = padded_states(model, texts())
    wanted = gradients(model, expected)
    assert enable_packing(model)
    packed = model(**pack(texts(), first_position(model))).last_hidden_state[0]
    torch.testing.assert_close(packed, expected, atol=2e-5, rtol=1e-4)
    found = gradients(model, packed)
    assert found.keys() == wanted.keys()
    for name in wanted:  # sums over all tokens, in another order
        torch.testing.assert_close(found[name], wanted[name], atol=2e-4, rtol=1e-3)


def test_ordinary_calls_stay_what_they_were(model: PreTrainedModel) -> None:
    with torch.no_grad():
        expected, alone = padded_states(model, texts()), model(input_ids=texts()[1][None]).last_hidden_state
        assert enable_packing(model)
        torch.testing.assert_close(padded_states(model, texts()), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(input_ids=texts()[1][None]).last_hidden_state, alone, atol=1e-5, rtol=1e-4)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    model = KINDS["bidirectional llama"]().train()
    wanted = gradients(model, padded_states(model, texts()))
    assert enable_packing(model)
    assert model.training
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, model(**pack(texts())).last_hidden_state[0])
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=2e-4, rtol=1e-3)


def test_under_bfloat16_autocast_states_stay_near_those_of_float32() -> None:
    model = KINDS["bidirectional llama"]().eval()
    expected = padded_states(model, texts())
    assert enable_packing(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**pack(texts())).last_hidden_state[0]
    cosines = torch.nn.functional.cosine_similarity(found.float(), expected)
    assert cosines.min() > 0.99  # eight bits of mantissa
    assert not torch.equal(found.float(), expected)


def test_a_model_whose_states_are_no_numbers_is_left_as_it_was() -> None:
    model = KINDS["bidirectional llama"]()
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_ignores_positions_is_left_as_it_was() -> None:
    class WithoutPositions(LlamaModel):
        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return super().forward(input_ids=input_ids)

    model = WithoutPositions(LlamaConfig(**GROUPED))
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_reads_its_window_another_way_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    sizes = T5GemmaModuleConfig(**GROUPED, sliding_window=4)  # its mask includes the window's end, as no other's does
    model = T5GemmaEncoderModel(T5GemmaConfig(encoder=sizes, decoder=sizes, is_encoder_decoder=False)).eval()
    before = model.config._attn_implementation
    assert not enable_packing(model)
    assert model.config._attn_implementation == before


def test_a_saved_folder_does_not_know_the_attention(tmp_path: Any) -> None:
    model = KINDS["bidirectional llama"]()
    assert enable_packing(model)
    model.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
    assert LlamaModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_pooled_rows_equal_loops_over_texts() -> None:
    states, inputs = torch.randn(sum(LENGTHS), 6), pack(texts())
    starts = inputs["cu_seq_lens_q"]
    rows = [states[start:end] for start, end in pairwise(starts.tolist())]
    torch.testing.assert_close(pool_packed(states, starts, "mean"), torch.stack([row.mean(0) for row in rows]))
    assert torch.equal(pool_packed(states, starts, "last"), torch.stack([row[-1] for row in rows]))
    assert torch.equal(pool_packed(states, starts, "cls"), torch.stack([row[0] for row in rows]))
    assert pool_packed(states.bfloat16(), starts, "mean").dtype == torch.float32


def test_positions_begin_anew_with_every_text() -> None:
    inputs = pack([torch.tensor([7, 8, 9]), torch.tensor([5])], first_position=2)
    assert inputs["input_ids"].tolist() == [[7, 8, 9, 5]]
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 2]]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 4]
    assert inputs["max_length_q"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused kernels run on CUDA only")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_the_fused_kernel_equals_text_by_text(causal: bool, window: int | None) -> None:
    starts = torch.tensor([0, 5, 14, 31], dtype=torch.int32)
    query, key, value = (torch.randn(1, heads, 31, 64) for heads in (4, 2, 2))
    settings: dict[str, Any] = {"is_causal": causal, "sliding_window": window}
    module = torch.nn.Module()
    expected, _ = packed_attention(module, query, key, value, None, cu_seq_lens_q=starts, **settings)
    query, key, value = (x.cuda().bfloat16() for x in (query, key, value))
    found, _ = packed_attention(module, query, key, value, None, cu_seq_lens_q=starts.cuda(), **settings)
    torch.testing.assert_close(found.float().cpu(), expected, atol=3e-2, rtol=3e-2)  # bfloat16
