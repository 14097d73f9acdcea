"""Masks on weights: the oracle is a Llama whose activations are masked by hand, hook by hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from drama_models.errors import ShapeError
from pruning.kv_heads import expand_kv_heads
from pruning.masked_model import MaskedCausalLM
from pruning.masked_weights import MaskValues
from pruning.masks import Masks, mask_shapes
from pruning.shape import BackboneShape, TargetShape
from pruning.slicing import renumbered, slice_tensor, sliced_config, sliced_shape


def make_llama(*, kv_heads: int = 2, tied: bool = False, bias: bool = False, eps: float = 1e-3) -> LlamaForCausalLM:
    """Random weights large enough, and an eps large enough, for every rule to show."""
    config = LlamaConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        intermediate_size=20,
        vocab_size=31,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + 1)
    return model


def random_masks(model: LlamaForCausalLM, keep: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Soft values with exactly `keep` non-zero ones in each row."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in mask_shapes(BackboneShape.of(model.config)).items():
        soft = torch.rand(shape, generator=generator) * 0.8 + 0.2
        rows = soft.view(-1, shape[-1])
        for row in rows:
            row[torch.randperm(shape[-1], generator=generator)[: shape[-1] - keep.get(name, shape[-1])]] = 0
        values[name] = soft
    return values


def by_hand(model: LlamaForCausalLM, values: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the masked forward pass (spec section 3), with activations masked through hooks."""
    shape = BackboneShape.of(model.config)
    hidden = values["hidden"]
    kept = hidden != 0
    handles = [model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: out * hidden)]

    def norm(module: Any, inputs: Any, _: Any, *, masked: bool = True) -> torch.Tensor:
        x = inputs[0]
        mean = x[..., kept].square().mean(-1, keepdim=True)
        out = module.weight * x / torch.sqrt(mean + module.variance_epsilon)
        return out * hidden if masked else out * kept

    for index, layer in enumerate(model.model.layers):
        out_scale = values["layer"][index] * hidden
        head = (values["head"][index][:, None] * values["query_head"][index]).flatten()
        head = head.repeat_interleave(shape.head_dim)
        units = values["intermediate"][index]
        handles += [
            layer.input_layernorm.register_forward_hook(norm),
            layer.post_attention_layernorm.register_forward_hook(norm),
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, head=head: (args[0] * head,)),
            layer.self_attn.o_proj.register_forward_hook(lambda _m, _i, out, scale=out_scale: out * scale),
            layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out, units=units: out * units),
            layer.mlp.down_proj.register_forward_hook(lambda _m, _i, out, scale=out_scale: out * scale),
        ]
    handles.append(model.model.norm.register_forward_hook(norm))
    logits: torch.Tensor = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits


KEEP = {"hidden": 15, "layer": 2, "head": 1, "intermediate": 9, "query_head": 1}
IDS = torch.randint(0, 31, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_masked_weights_match_masked_activations(kv_heads: int, bias: bool) -> None:
    model = make_llama(kv_heads=kv_heads, bias=bias)
    values = random_masks(model, KEEP)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    expected = by_hand(model, leaves, IDS)
    expected_gradients = torch.autograd.grad(expected.square().mean(), list(leaves.values()))
    masked = MaskedCausalLM(model, Masks(*(BackboneShape.of(model.config),) * 2), 0)
    found = masked.call_with(leaves, input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad(found.square().mean(), list(leaves.values()))
    for ours, theirs, name in zip(gradients, expected_gradients, leaves, strict=True):
        # where a gate is zero the reference lets gradient through the norm's selection, which is not differentiable
        alive = values[name] != 0
        torch.testing.assert_close(ours[alive], theirs[alive], atol=1e-5, rtol=1e-3, msg=name)


def sliced(model: LlamaForCausalLM, values: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    masks = MaskValues(values, BackboneShape.of(model.config), tied=model.config.tie_word_embeddings)
    small = LlamaForCausalLM(LlamaConfig(**sliced_config(model.config.to_dict(), sliced_shape(masks)))).eval()
    layers = masks.kept_layers()
    state = {
        new: slice_tensor(name, weight, masks)
        for name, weight in model.state_dict().items()
        if (new := renumbered(name, layers)) and not (masks.tied and name == "lm_head.weight")
    }
    small.load_state_dict(state, strict=False)
    return small


@settings(max_examples=30, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    tied=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
    per_head=st.integers(1, 6),
    layer=st.integers(1, 3),
    units=st.integers(1, 20),
    eps=st.sampled_from([1e-6, 1e-2]),
    query_heads=st.integers(1, 4),
)
def test_sliced_equals_masked_and_counts_its_parameters(
    kv_heads: int,
    tied: bool,
    bias: bool,
    seed: int,
    per_head: int,
    layer: int,
    units: int,
    eps: float,
    query_heads: int,
) -> None:
    torch.manual_seed(seed)
    model = make_llama(kv_heads=kv_heads, tied=tied, bias=bias, eps=eps)
    groups = 1 + seed % kv_heads
    query_heads = min(query_heads, 4 // kv_heads)  # in each group
    hidden = per_head * groups * query_heads  # transformers wants a multiple of the query heads
    keep = {"hidden": hidden, "layer": layer, "head": groups, "intermediate": units, "query_head": query_heads}
    values = random_masks(model, keep, seed)
    small = sliced(model, values)
    masked = MaskedCausalLM(model, Masks(*(BackboneShape.of(model.config),) * 2), 0)
    with torch.no_grad():
        expected = masked.call_with(values, input_ids=IDS).logits
        torch.testing.assert_close(small(input_ids=IDS).logits, expected, atol=2e-5, rtol=1e-3)
    shape = BackboneShape.of(small.config)
    assert (shape.hidden_size, shape.num_layers, shape.intermediate_size) == (hidden, layer, units)
    assert (shape.num_heads, shape.num_kv_heads) == (groups * query_heads, groups)
    counted = sum(parameter.numel() for parameter in small.parameters())
    assert shape.total_parameters(31, tied=tied) == counted


def test_norm_eps_is_restored_in_effect_when_nothing_is_masked() -> None:
    model = make_llama()
    before = model(input_ids=IDS).logits
    masked = MaskedCausalLM(model, Masks(*(BackboneShape.of(model.config),) * 2), 0)
    torch.testing.assert_close(masked.call_with({}, input_ids=IDS).logits, before)
    torch.testing.assert_close(model(input_ids=IDS).logits, before)


def test_a_model_can_be_wrapped_again() -> None:
    model = make_llama()
    source, values = BackboneShape.of(model.config), random_masks(model, {"hidden": 16})
    first, second = (
        MaskedCausalLM(model, Masks(source, source), 0).call_with(values, input_ids=IDS).logits for _ in range(2)
    )
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_a_draw_that_keeps_nothing_gives_numbers() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    nothing = {"hidden": torch.zeros(source.hidden_size)}
    logits = MaskedCausalLM(model, Masks(source, source), 0).call_with(nothing, input_ids=IDS).logits
    torch.testing.assert_close(logits, torch.zeros_like(logits))


def test_a_target_like_the_source_costs_nothing_and_unknown_masks_are_refused() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    stock = model(input_ids=IDS, labels=IDS).loss
    masked = MaskedCausalLM(model, Masks(source, source), 0).train()
    torch.testing.assert_close(masked(input_ids=IDS, labels=IDS).loss, stock)
    with pytest.raises(ValueError, match="No dimension is called 'layers'; choose from: hidden, layer, head"):
        masked.call_with({"layers": torch.ones(3)}, input_ids=IDS)


def test_training_and_evaluation_use_their_own_masks() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    masks = Masks(source, source.cut_to(TargetShape(hidden_size=16, num_layers=2)), seed=3)
    assert set(masks.log_alpha) == {"hidden", "layer"}
    masked = MaskedCausalLM(model, masks, warmup_steps=10)
    masked.eval()
    first, second = (masked(input_ids=IDS, labels=IDS).loss for _ in range(2))
    assert first == second  # no noise
    plain = masked.call_with(masks.deterministic(at_target=False), input_ids=IDS, labels=IDS).loss
    assert first == plain  # and no penalty
    masked.train()
    masks.log_alpha["hidden"].data.fill_(0.0)
    draws = {masked(input_ids=IDS, labels=IDS).loss.item() for _ in range(3)}
    assert len(draws) == 3


def test_the_generator_travels_with_the_state() -> None:
    source = BackboneShape.of(make_llama().config)
    target = source.cut_to(TargetShape(intermediate_size=10))
    one, two = Masks(source, target, seed=1), Masks(source, target, seed=2)
    one.draw()
    two.load_state_dict(one.state_dict())
    for ours, theirs in zip(one.draw().values(), two.draw().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = make_llama(tied=True)
    source = BackboneShape.of(model.config)
    masked = MaskedCausalLM(model, Masks(source, source), 0)
    save_file(masked.state_dict(), tmp_path / "state.safetensors")
    restored = make_llama(tied=True)
    MaskedCausalLM(restored, Masks(source, source), 0).load_state_dict(load_file(tmp_path / "state.safetensors"))
    torch.testing.assert_close(restored.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_expanding_kv_heads_changes_nothing(bias: bool) -> None:
    model = make_llama(kv_heads=1, bias=bias)
    for heads in (2, 4):
        wide = make_llama(kv_heads=heads, bias=bias)
        wide.load_state_dict(expand_kv_heads(model.state_dict(), BackboneShape.of(model.config), heads))
        torch.testing.assert_close(wide(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with pytest.raises(ShapeError, match=r"choose one of \[1, 2, 4\]"):
        expand_kv_heads(model.state_dict(), BackboneShape.of(model.config), 3)


def test_weights_of_other_models_are_refused() -> None:
    masks = MaskValues({}, BackboneShape.of(make_llama().config), tied=False)
    with pytest.raises(ValueError, match="only Llama-shaped models"):
        masks.rule("encoder.layer.0.attention.weight")


@pytest.mark.parametrize("enabled_on", ["masked", "stock"])
def test_gradient_checkpointing_changes_no_gradient(enabled_on: str) -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    target = TargetShape(hidden_size=16, num_layers=2, intermediate_size=9)
    masked = MaskedCausalLM(model, Masks(source, source.cut_to(target)), 0).train()
    for log_alpha in masked.masks.log_alpha.values():
        log_alpha.data.uniform_(-1, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = masked.masks.generator_state.clone()
    calls: list[int] = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(len(calls)))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            (masked if enabled_on == "masked" else model).activation_checkpointing_enable()
        masked.masks.generator_state.copy_(state)  # the same draw
        masked.zero_grad()
        masked(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: value.grad for name, value in masked.named_parameters() if value.grad is not None})
    assert len(calls) == 1 + 2  # the second time it was computed twice
    assert set(gradients[0]) == {name for name, _ in masked.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_autocast_works_under_masks() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    values = random_masks(model, KEEP)
    masked = MaskedCausalLM(model, Masks(source, source), 0)
    plain = masked.call_with(values, input_ids=IDS, labels=IDS).loss
    with torch.autocast("cpu", torch.bfloat16):
        lower = masked.call_with(values, input_ids=IDS, labels=IDS).loss
    torch.testing.assert_close(lower.float(), plain, atol=0.05, rtol=0.02)


def test_accumulated_parts_share_one_penalty() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    masked = MaskedCausalLM(model, Masks(source, source.cut_to(TargetShape(hidden_size=16))), 0).train()
    masked.lagrangian.lambda_1["hidden"].data.fill_(3.0)
    masked.masks.clamp()
    penalty = masked.lagrangian.penalty(masked.masks.scores(), 0)
    state = masked.masks.generator_state.clone()
    whole = masked(input_ids=IDS, labels=IDS).loss
    masked.masks.generator_state.copy_(state)  # the same draw
    items = 2 * IDS[:, 1:].numel()  # as many tokens again in the step's other part
    torch.testing.assert_close(masked(input_ids=IDS, labels=IDS, num_items_in_batch=items).loss, whole / 2)
    assert masked.penalty == pytest.approx(penalty.item(), rel=1e-4)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_every_attention_kernel_works_under_masks(attention: str) -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    values = random_masks(model, KEEP)
    expected = MaskedCausalLM(model, Masks(source, source), 0).call_with(values, input_ids=IDS).logits
    other = LlamaForCausalLM._from_config(model.config, attn_implementation=attention).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = MaskedCausalLM(other, Masks(source, source), 0).call_with(values, input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_compiled_model_takes_the_same_gradients() -> None:
    model = make_llama()
    source = BackboneShape.of(model.config)
    masked = MaskedCausalLM(model, Masks(source, source.cut_to(TargetShape(hidden_size=16))), 0).train()
    state = masked.masks.generator_state.clone()
    gradients = []
    for called in (masked, torch.compile(masked, backend="aot_eager")):
        masked.masks.generator_state.copy_(state)
        masked.zero_grad()
        called(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: value.grad for name, value in masked.named_parameters() if value.grad is not None})
    assert set(gradients[0]) == {name for name, _ in masked.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)
