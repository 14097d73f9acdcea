"""Bounds of products in float16: reached by the worst input, passed by none; graphs run in NumPy's real float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from export import bert_graph, llama_graph
from export.float16_range import ALLOWED, LARGEST_SCALE, fitting_scale, largest_after_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from onnx import ModelProto
    from transformers import PreTrainedModel

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 90}
SIZES |= {"num_attention_heads": 4}
LLAMA = SIZES | {"is_causal": False, "attn_implementation": "eager", "attention_bias": True, "mlp_bias": True}
TOKENS = 24


def drawn(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("offset", [None, drawn(32)], ids=["RMSNorm", "LayerNorm"])
def test_a_norm_reaches_its_bound_and_never_passes_it(offset: NDArray[np.float32] | None) -> None:
    weight, gain = drawn(7, 32) * 3, np.abs(drawn(32)) + 1
    bound = largest_after_norm(weight, gain, offset)
    shift = 0 if offset is None else offset
    directions = np.concatenate([drawn(1000, 32), weight * gain, -weight * gain])  # these last are the worst ones
    states = directions / np.sqrt(np.square(directions).mean(axis=1, keepdims=True)) * gain + shift
    reached = np.abs(states @ weight.T).max()
    assert reached <= bound * (1 + 1e-6)
    assert reached > bound * (0.5 if offset is not None else 1 - 1e-6)  # the offset's signs are taken as the worst


def test_inputs_themselves_count_where_weights_are_small() -> None:
    gain = np.array([1.0, 5e4], dtype=np.float32)
    assert largest_after_norm(np.full((3, 2), 1e-6, dtype=np.float32), gain) == pytest.approx(5e4 * np.sqrt(2))


@pytest.mark.parametrize("factor", [1e-6, 1.0, 300.0, 5e4])
def test_no_input_of_the_fitting_scale_leaves_float16(factor: float) -> None:
    weight = drawn(7, 32) * factor
    scale = fitting_scale(weight)
    assert scale == 2 ** np.log2(scale).round() <= LARGEST_SCALE
    largest = np.abs(weight @ (np.sign(weight) * scale).T).max()
    assert largest <= ALLOWED
    assert scale == LARGEST_SCALE or largest > ALLOWED / 2


def random_llama() -> LlamaModel:
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**LLAMA))
    randomise(model)
    return model


def random_bert() -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    randomise(model)
    return model


def randomise(model: PreTrainedModel) -> None:
    """Norms and biases too: transformers starts them where an error would not show."""
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def stretched_mlp(model: Any) -> None:
    """States between up_proj and down_proj beyond float16, in the same function."""
    for layer in model.layers:
        layer.mlp.up_proj.weight *= 3e4
        layer.mlp.up_proj.bias *= 3e4
        layer.mlp.down_proj.weight /= 3e4


def stretched_values(model: Any) -> None:
    """Values beyond float16, in the same function."""
    for layer in model.layers:
        layer.self_attn.v_proj.weight *= 2e4
        layer.self_attn.v_proj.bias *= 2e4
        layer.self_attn.o_proj.weight /= 2e4


def stretched_scores(model: Any) -> None:
    """Keys beyond float16, whose queries are as much smaller, in the same function."""
    for layer in model.layers:
        layer.self_attn.k_proj.weight *= 2e4
        layer.self_attn.k_proj.bias *= 2e4
        layer.self_attn.q_proj.weight /= 2e4
        layer.self_attn.q_proj.bias /= 2e4


def stretched_norms(model: Any) -> None:
    """Inputs of linear layers beyond float16, in the same function."""
    for layer in model.layers:
        layer.input_layernorm.weight *= 2e4
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight /= 2e4


def in_real_float16(graph: ModelProto, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Last states of a text, (T, D), by ONNX's own evaluator, whose products of float16 are float16."""
    (states,) = ReferenceEvaluator(graph).run(None, {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]})
    assert isinstance(states, np.ndarray)
    return states[0]


def smallest_cosine(model: PreTrainedModel, graph: ModelProto) -> float:
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], TOKENS)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    found = in_real_float16(graph, ids)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    return float(cosines.min())


@pytest.mark.parametrize("stretch", [None, stretched_mlp, stretched_values, stretched_scores, stretched_norms])
def test_a_llama_stays_itself_where_its_states_are_beyond_float16(stretch: Callable[[Any], None] | None) -> None:
    model = random_llama()
    if stretch is not None:
        with torch.no_grad():
            stretch(model)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph = llama_graph.build_graph(model.config.to_dict(), weights, bidirectional=True, half=True)
    assert smallest_cosine(model, graph) > 0.9999


@pytest.mark.parametrize("factor", [1.0, 3e4])
def test_a_bert_stays_itself_where_its_states_are_beyond_float16(factor: float) -> None:
    model: Any = random_bert()
    with torch.no_grad():
        for layer in model.encoder.layer:  # gelu(x) is x or 0 where x is large, and grows with it
            layer.intermediate.dense.weight *= factor
            layer.intermediate.dense.bias *= factor
            layer.output.dense.weight /= factor
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph = bert_graph.build_graph(model.config.to_dict(), weights, bidirectional=True, half=True)
    assert smallest_cosine(model, graph) > 0.9999
