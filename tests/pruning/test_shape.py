"""Shapes against instantiated models, and targets that cannot be reached."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drama_models.errors import ShapeError
from pruning.lagrangian import target_sparsities
from pruning.masks import expected_parameters, mask_shapes
from pruning.shape import BackboneShape, TargetShape

LLAMA_1B = BackboneShape(
    hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, intermediate_size=8192
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 8), (4, 2, 8), (6, 1, 4)])
@pytest.mark.parametrize("biases", [{}, {"attention_bias": True}, {"mlp_bias": True}])
def test_counts_match_an_instantiated_model(
    tied: bool, heads: int, kv_heads: int, head_dim: int, biases: dict[str, bool]
) -> None:
    config = LlamaConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=20,
        vocab_size=11,
        tie_word_embeddings=tied,
        attention_bias=biases.get("attention_bias", False),
        mlp_bias=biases.get("mlp_bias", False),
    )
    shape = BackboneShape.of(config)
    counted = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert shape.total_parameters(11, tied=tied) == counted
    everything = {name: torch.ones(size) for name, size in mask_shapes(shape).items()}
    assert expected_parameters(everything, shape).item() == shape.prunable_parameters


def test_published_shape_from_the_expanded_source() -> None:
    expanded = BackboneShape(
        hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=32, head_dim=64, intermediate_size=8192
    )
    target = expanded.cut_to(TargetShape(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072))
    assert target.non_embedding_parameters == 113_265_408
    assert target.num_kv_heads == 12
    grouped = LLAMA_1B.cut_to(TargetShape(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072))
    assert (grouped.num_kv_heads, grouped.non_embedding_parameters) == (3, 102_648_576)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"num_layers": 17}, r"num_layers=17 cannot be cut .* choose between 1 and 16"),
        ({"hidden_size": 64}, r"hidden_size=64 .* choose between 97 and 2048"),
        ({"intermediate_size": 0}, r"intermediate_size=0 .* choose between"),
        (
            {"num_heads": 10},
            r"num_heads=10 splits a KV group of 4 .* try num_heads=8, set num_kv_heads .* or expand",
        ),
        ({"num_heads": 10, "num_kv_heads": 4}, r"num_heads=10 does not fit num_kv_heads=4: .* one of \[4, 8, 12, 16\]"),
        ({"hidden_size": 1000, "num_heads": 12}, r"hidden_size=1000 is not a multiple .* try hidden_size=996"),
    ],
)
def test_impossible_targets_name_a_possible_one(target: dict[str, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        LLAMA_1B.cut_to(TargetShape(**target))


def test_query_heads_can_be_cut_inside_groups() -> None:
    target = LLAMA_1B.cut_to(TargetShape(hidden_size=768, num_heads=12, num_kv_heads=6))
    assert (target.num_heads, target.num_kv_heads, target.heads_per_group) == (12, 6, 2)
    assert target_sparsities(mask_shapes(LLAMA_1B), mask_shapes(target)) == {
        "hidden": 0.625, "head": 0.25, "query_head": 0.5,
    }  # fmt: skip
    half = {"query_head": torch.full((16, 8, 4), 0.5)}
    expected = 16 * (2048 * 64 * 2 * (16 + 8) + LLAMA_1B.mlp_parameters)
    assert expected_parameters(half, LLAMA_1B).item() == expected


def test_sizes_that_are_left_out_stay() -> None:
    assert LLAMA_1B.cut_to(TargetShape()) == LLAMA_1B
    assert LLAMA_1B.cut_to(TargetShape(num_layers=4)).hidden_size == 2048
