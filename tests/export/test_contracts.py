"""Each field that a server reads, taken away or turned round: the line for that server has to say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from drama_models.model_folder import read_json
from export.contracts import contract_lines, contract_problems

SERVERS = {"vLLM", "text-embeddings-inference", "llama.cpp"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 128}


@pytest.fixture
def release(release_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release_folder, tmp_path / "release"))


def test_a_release_has_what_every_server_reads(release_folder: Path) -> None:
    assert contract_problems(release_folder) == {server: [] for server in SERVERS}
    lines = contract_lines(release_folder)
    assert len(lines) == 3
    assert all("not run: the fields that it reads are right" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "changes", "servers"),
    [
        ("config.json", {"use_bidirectional_attention": False}, {"text-embeddings-inference"}),
        ("config.json", {"matryoshka_dimensions": [48]}, set()),  # it is the profile that follows it
        ("config.json", {"architectures": ["BertModel"]}, {"llama.cpp"}),
        ("config.json", {"rope_parameters": LLAMA3}, {"text-embeddings-inference"}),
        ("config.json", {"head_dim": 4}, {"text-embeddings-inference"}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, {"vLLM", "text-embeddings-inference"}),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, {"vLLM", "text-embeddings-inference"}),
        ("sentence_bert_config.json", {"max_seq_length": 999}, {"vLLM", "text-embeddings-inference"}),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, {"llama.cpp"}),
    ],
)
def test_a_field_that_says_otherwise_is_named(
    release: Path, name: str, changes: dict[str, Any], servers: set[str]
) -> None:
    (release / name).write_text(json.dumps(read_json(release / name) | changes), encoding="utf-8")
    problems = contract_problems(release)
    assert {server for server, found in problems.items() if found} == servers
    assert all(len(found) == 1 for server, found in problems.items() if server in servers)


def test_a_direction_said_twice_and_not_alike_is_named_for_every_server(release: Path) -> None:
    config = read_json(release / "config.json") | {"is_causal": None}  # read as: not causal
    (release / "config.json").write_text(json.dumps(config), encoding="utf-8")
    problems = contract_problems(release)
    assert "is_causal is None" in problems["vLLM"][0]
    assert "direction from is_causal" in problems["llama.cpp"][0]
    assert not problems["text-embeddings-inference"]


def test_a_graph_with_other_inputs_is_named(release: Path) -> None:
    path = release / "onnx" / "model.onnx"
    model = onnx.load(path)
    extra = onnx.helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, ["batch", "length"])
    model.graph.input.append(extra)
    onnx.save(model, path)
    for _ in range(2):
        assert "gives attention_mask and input_ids" in contract_problems(release)["text-embeddings-inference"][0]
        path.write_bytes(b"no graph")
