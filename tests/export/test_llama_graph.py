"""The ONNX graph against transformers' own Llama, for every shape a source model can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import LlamaConfig, LlamaModel

from drama_models.errors import ModelFolderError
from drama_models.rotary import inverse_frequencies, rotary_settings
from export.llama_graph import OPSET, build_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.3, "rms_norm_eps": 1e-5}
LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped-query": {"num_key_value_heads": 2},
    "one key-value head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama 3 positions": {"rope_parameters": LLAMA3},
}
LENGTHS = (11, 4, 1)


def transformers_states(config: LlamaConfig, model: LlamaModel, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Last states of the stock model, (T, D), one text alone, so that padding plays no part."""
    with torch.no_grad():
        states: NDArray[np.float32] = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    return states


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_padded_batch_equals_transformers_one_by_one(changes: dict[str, Any], bidirectional: bool) -> None:
    settings = SMALL | changes | {"is_causal": not bidirectional, "attn_implementation": "eager"}
    config = LlamaConfig(**settings)
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # transformers starts biases at zero, where a missing one would not show
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph = build_graph(config.to_dict(), weights, bidirectional=bidirectional)
    onnx.checker.check_model(graph, full_check=True)
    session = InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    generator = np.random.default_rng(0)
    texts = [generator.integers(0, config.vocab_size, length) for length in LENGTHS]
    ids = np.zeros((len(texts), max(LENGTHS)), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    (states,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})

    assert states.shape == (*ids.shape, config.hidden_size)
    for row, text in enumerate(texts):  # float32 in another order of summation: 2e-5 on states of size one
        np.testing.assert_allclose(states[row, : len(text)], transformers_states(config, model, text), atol=2e-5)


def half_graph(config: LlamaConfig, model: LlamaModel) -> onnx.ModelProto:
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return build_graph(config.to_dict(), weights, bidirectional=True, half=True)


def test_half_precision_stays_close_to_transformers_where_states_are_beyond_float16() -> None:
    config = LlamaConfig(**(SMALL | {"is_causal": False, "attn_implementation": "eager"}))
    model = LlamaModel(config).eval()
    with torch.no_grad():
        model.embed_tokens.weight *= 2000  # squares of the residual stream overflow float16
    session = InferenceSession(half_graph(config, model).SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 24)
    mask = np.ones((1, 32), dtype=np.int64)
    mask[:, 24:] = 0
    (states,) = session.run(None, {"input_ids": np.pad(ids, (0, 8))[None], "attention_mask": mask})
    expected = transformers_states(config, model, ids)
    assert states.dtype == np.float32
    cosine = (states[0, :24] * expected).sum(1) / np.linalg.norm(states[0, :24], axis=1)
    assert (cosine / np.linalg.norm(expected, axis=1)).min() > 0.9999


def test_half_precision_halves_every_matrix_and_nothing_else() -> None:
    config = LlamaConfig(**SMALL)
    model = LlamaModel(config)
    graph = half_graph(config, model)
    onnx.checker.check_model(graph, full_check=True)
    kinds = {entry.name: entry.data_type for entry in graph.graph.initializer}
    for name, value in model.named_parameters():
        assert kinds[name] == (onnx.TensorProto.FLOAT16 if value.ndim == 2 else onnx.TensorProto.FLOAT), name
    assert {node.domain for node in graph.graph.node} == {""}
    assert graph.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    with torch.no_grad():
        model.get_parameter("layers.0.mlp.up_proj.weight")[0, 0] = 1e5
    with pytest.raises(ModelFolderError, match=r"up_proj\.weight' has values beyond float16"):
        half_graph(config, model)


def test_graph_uses_standard_operators_of_an_old_operator_set() -> None:
    config = LlamaConfig(**SMALL)
    weights = {name: value.numpy() for name, value in LlamaModel(config).state_dict().items()}
    graph = build_graph(config.to_dict(), weights, bidirectional=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]
    assert {node.domain for node in graph.graph.node} == {""}
    assert [value.name for value in graph.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.graph.output] == ["last_hidden_state"]


def test_frequencies_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**SMALL, rope_parameters=LLAMA3)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    np.testing.assert_allclose(inverse_frequencies(config.to_dict(), 8), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 500_000.0, "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"}},
        {"rope_parameters": LLAMA3},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_both_spellings_of_rotary_settings_mean_the_same(settings: dict[str, Any]) -> None:
    assert rotary_settings(settings) == LLAMA3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "'yarn' is not built here; supported are default",
        ),
        ({"hidden_act": "gelu"}, "'gelu' is not built here"),
    ],
)
def test_what_is_not_built_is_refused(changes: dict[str, Any], message: str) -> None:
    config = LlamaConfig(**SMALL)
    weights = {name: value.numpy() for name, value in LlamaModel(config).state_dict().items()}
    with pytest.raises(ModelFolderError, match=message):
        build_graph(config.to_dict() | changes, weights, bidirectional=True)


def test_a_missing_weight_is_named() -> None:
    config = LlamaConfig(**SMALL)
    weights = {name: value.numpy() for name, value in LlamaModel(config).state_dict().items()}
    del weights["layers.1.mlp.up_proj.weight"]
    with pytest.raises(KeyError, match=r"layers\.1\.mlp\.up_proj"):
        build_graph(config.to_dict(), weights, bidirectional=True)
