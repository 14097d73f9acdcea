"""ONNX Runtime straight from the safetensors of a BERT, against transformers' own BertModel on each text alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from drama_models import Encoder, Profile
from drama_models.errors import DeviceError, ModelFolderError
from drama_models.pooling import pool
from drama_models.runtimes.bert_runtime import BertOnnxRuntime
from drama_models.runtimes.choice import why_not_from_safetensors
from drama_models.runtimes.onnx_runtime import OnnxRuntime
from tests.conftest import TEXTS
from tests.drama_models.published_models import write_dragon

if TYPE_CHECKING:
    from pathlib import Path

    from drama_models.runtimes.choice import RuntimeName

SHAPE: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 3, "intermediate_size": 80}
SHAPE |= {"vocab_size": 300, "max_position_embeddings": 64, "initializer_range": 0.2}
LENGTHS = (9, 1, 40, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random BERT whose norms and biases are random too: transformers starts them where an error would not show."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SHAPE), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def profile_of(**changes: Any) -> Profile:
    settings: dict[str, Any] = {"hidden_size": 48, "bidirectional": True, "pooling": "mean", "query_prompt": ""}
    settings |= {"document_prompt": "", "set_ends": False, "max_length": 64, "normalise": True, "dims": ()}
    return Profile(**(settings | changes))


def random_texts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 300, length) for length in LENGTHS]


def expected(folder: Path, profile: Profile) -> np.ndarray:
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    rows = []
    for text in random_texts():
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(text)[None]).last_hidden_state.numpy()
        rows.append(pool(states, np.ones((1, len(text)), dtype=np.int64), profile.pooling)[0])
    return np.stack(rows)


def changed(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_pooled_states_are_those_of_transformers(folder: Path, pooling: Any) -> None:
    profile = profile_of(pooling=pooling)
    vectors = BertOnnxRuntime(folder, profile, threads=1).embed(random_texts())
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected(folder, profile), atol=2e-5)  # float32 in another order of summation


def test_a_bert_that_is_a_decoder_is_causal_here_too(folder: Path) -> None:
    both_ways = expected(folder, profile_of())
    profile = replace(profile_of(), bidirectional=Profile.from_folder(changed(folder, is_decoder=True)).bidirectional)
    wanted = expected(folder, profile)
    assert np.abs(wanted - both_ways).max() > 0.1
    np.testing.assert_allclose(BertOnnxRuntime(folder, profile, threads=1).embed(random_texts()), wanted, atol=2e-5)


def test_names_of_older_checkpoints_are_understood(folder: Path) -> None:
    wanted = expected(folder, profile_of())
    old: dict[str, torch.Tensor] = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    for name, value in load_file(folder / "model.safetensors").items():
        norm = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{norm}"] = value
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    vectors = BertOnnxRuntime(folder, profile_of(), threads=1).embed(random_texts())
    np.testing.assert_allclose(vectors, wanted, atol=2e-5)


def test_half_precision_weights_are_computed_in_float32(folder: Path) -> None:
    halves = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file({name: value.float() for name, value in halves.items()}, folder / "model.safetensors")
    wanted = expected(folder, profile_of())
    save_file(halves, folder / "model.safetensors")
    vectors = BertOnnxRuntime(folder, profile_of(), threads=1).embed(random_texts())
    np.testing.assert_allclose(vectors, wanted, atol=2e-5)


def test_a_text_without_tokens_gives_zeros_and_disturbs_nobody(folder: Path) -> None:
    runtime = BertOnnxRuntime(folder, profile_of(), threads=1)
    empty, (first, second, *_) = np.empty(0, dtype=np.int64), random_texts()
    vectors = runtime.embed([empty, first, empty, second])
    assert not vectors[[0, 2]].any()
    for row, text in ((1, first), (3, second)):
        np.testing.assert_allclose(vectors[row], runtime.embed([text])[0], atol=1e-6)


def test_a_published_pair_of_berts_needs_no_torch(tmp_path: Path) -> None:
    query_folder, _ = write_dragon(tmp_path)
    ours, stock = (Encoder.from_pretrained(query_folder, runtime=name) for name in ("auto", "torch"))
    assert "from safetensors" in ours.runtime.description
    np.testing.assert_allclose(ours.encode_queries(TEXTS[:6]), stock.encode_queries(TEXTS[:6]), atol=2e-5)
    np.testing.assert_allclose(ours.encode_documents(TEXTS[:6]), stock.encode_documents(TEXTS[:6]), atol=2e-5)


def test_int8_is_answered_in_a_sentence(tmp_path: Path) -> None:
    query_folder, _ = write_dragon(tmp_path)
    with pytest.raises(DeviceError, match=r"needs runtime='onnx' and the safetensors of a Llama: a bert is no Llama\."):
        Encoder.from_pretrained(query_folder, precision="int8")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu_new"}, "Activation 'gelu_new' is not computed from safetensors"),
        ({"position_embedding_type": "relative_key"}, "Positions 'relative_key' are not computed from safetensors"),
        ({"model_type": "roberta"}, "a roberta is no Llama and no BERT"),
    ],
)
def test_what_the_graph_does_not_know_is_left_to_torch(folder: Path, changes: dict[str, str], reason: str) -> None:
    found = why_not_from_safetensors(changed(folder, **changes))
    assert found is not None
    assert found.startswith(reason)


def test_weights_that_do_not_fit_the_configuration_are_named(folder: Path, tmp_path: Path) -> None:
    short = changed(shutil.copytree(folder, tmp_path / "short"), vocab_size=299)
    with pytest.raises(ModelFolderError, match=r"word_embeddings.* has shape \(300, 48\) .* asks for \(299, 48\)"):
        BertOnnxRuntime(short, profile_of(), threads=1)
    with pytest.raises(ModelFolderError, match=r"has no tensor 'encoder\.layer\.3\."):
        BertOnnxRuntime(changed(folder, num_hidden_layers=4), profile_of(), threads=1)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, "has no usable num_attention_heads, which a BERT needs"),
        ({"num_hidden_layers": None}, "has no usable num_hidden_layers, which a BERT needs"),
        ({"max_position_embeddings": None}, "has no usable max_position_embeddings, which a BERT needs"),
        ({"num_attention_heads": 7}, "hidden_size=32 is no multiple of num_attention_heads=7"),
        ({"num_hidden_layers": 3}, r"has no tensor 'encoder\.layer\.2\."),
    ],
)
def test_sizes_that_no_bert_has_are_named_in_every_runtime(
    tmp_path: Path, runtime: RuntimeName, changes: dict[str, Any], message: str
) -> None:
    query_folder, _ = write_dragon(tmp_path)
    changed(query_folder, **changes)
    with pytest.raises(ModelFolderError, match=message):
        Encoder.from_pretrained(query_folder, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_damaged_header_is_named_in_every_runtime(tmp_path: Path, runtime: RuntimeName) -> None:
    query_folder, _ = write_dragon(tmp_path)
    path = query_folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"X32"', 1))
    with pytest.raises(ModelFolderError, match=r"model\.safetensors has a damaged safetensors header .*X32"):
        Encoder.from_pretrained(query_folder, runtime=runtime)


def test_a_graph_with_kinds_of_tokens_runs_as_it_is(folder: Path) -> None:
    """As optimum exports a BERT: with three inputs."""
    model = (
        BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Exported(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = model(**dict(zip(names, inputs, strict=True))).last_hidden_state
            return states

    (folder / "onnx").mkdir()
    ids, axes = torch.ones(2, 5, dtype=torch.int64), {0: "batch", 1: "length"}
    torch.onnx.export(
        Exported(), (ids, ids, ids * 0), str(folder / "onnx" / "model.onnx"), input_names=names,
        output_names=["last_hidden_state"], dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
        opset_version=17, dynamo=False,
    )  # fmt: skip
    vectors = OnnxRuntime(folder, profile_of(), threads=1).embed(random_texts())
    np.testing.assert_allclose(vectors, expected(folder, profile_of()), atol=2e-5)
