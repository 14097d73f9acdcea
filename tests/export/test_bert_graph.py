"""A BERT's graph against transformers' BertModel, in a batch and alone; releases of one, by every client there is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from drama_models import Encoder
from drama_models.errors import LengthError, ModelFolderError, PrecisionError
from drama_models.model_folder import read_json
from drama_models.sample_texts import SAMPLE_TEXTS
from export.bert_graph import build_graph
from export.contracts import contract_problems
from export.release import ReleaseRecipe, release
from export.verify import compare

NANO = Path("demo/nano")


def random_bert() -> tuple[BertModel, dict[str, Any]]:
    """Norms and biases are random too: transformers starts them where an error would not show."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "intermediate_size": 80,
    }
    config = BertConfig(**sizes, vocab_size=300, max_position_embeddings=64, initializer_range=0.2)
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, config.to_dict()


@pytest.mark.parametrize(("half", "tolerance"), [(False, 2e-5), (True, 2e-2)])  # sums in another order; float16
def test_the_graph_is_the_stock_model(half: bool, tolerance: float) -> None:
    model, config = random_bert()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = build_graph(config, weights, bidirectional=True, half=half)
    session = InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    lengths = [40, 9, 1, 64]
    ids = draw.integers(3, 300, (4, 64))
    mask = (np.arange(64) < np.array(lengths)[:, None]).astype(np.int64)
    (batch,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    assert batch.dtype == np.float32
    for row, length in enumerate(lengths):
        alone = ids[row : row + 1, :length]
        (ours,) = session.run(None, {"input_ids": alone, "attention_mask": np.ones_like(alone)})
        with torch.no_grad():
            theirs = model(input_ids=torch.from_numpy(alone)).last_hidden_state.numpy()
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
        np.testing.assert_allclose(batch[row, :length], theirs[0], atol=tolerance)


def test_a_bert_becomes_a_release_that_every_client_loads(tmp_path: Path) -> None:
    out = tmp_path / "release"
    parity = release(ReleaseRecipe(retriever=NANO, out=out, onnx=("fp32", "fp16")))  # refuses what a client denies
    assert {each.client for each in parity} >= {"automodel", "sentence_transformers", "onnxruntime"}
    released, nano = Encoder.from_pretrained(out), Encoder.from_pretrained(NANO)
    texts = list(SAMPLE_TEXTS)
    assert "llama.cpp" not in {entry.client for entry in compare(out, texts[:1], [])}  # its script writes Llamas
    np.testing.assert_allclose(released.encode_queries(texts), nano.encode_queries(texts), atol=1e-5)
    assert read_json(out / "config.json")["architectures"] == ["BertModel"]
    assert read_json(out / "config_sentence_transformers.json")["prompts"] == {"query": "", "document": ""}
    assert sorted(path.name for path in (out / "onnx").iterdir()) == ["model.onnx", "model_fp16.onnx"]
    assert not (out / "modeling_drama.py").exists()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "a BERT encoder" in card
    assert "Queries need no prompt" in card
    assert "Llama" not in card
    assert contract_problems(out) == {"vLLM": [], "text-embeddings-inference": [], "llama.cpp": []}


def test_what_cannot_be_released_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match=r"is a BERT, whose graphs are not made in eight bits; leave int8 out"):
        release(ReleaseRecipe(retriever=NANO, out=tmp_path / "out", onnx=("fp32", "int8")))
    with pytest.raises(LengthError, match=r"max_length=4096 is beyond the \d+ tokens that .* has position embeddings"):
        release(ReleaseRecipe(retriever=NANO, out=tmp_path / "out", max_length=4096))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "modernbert"}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="is a modernbert, and releases are made of Llama and BERT encoders"):
        release(ReleaseRecipe(retriever=tmp_path / "other", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_folders_of_berts_as_others_write_them_become_releases(tmp_path: Path) -> None:
    source = Path(shutil.copytree(NANO, tmp_path / "source"))
    backbone, modules = source / "0_Transformer", json.loads((source / "modules.json").read_text(encoding="utf-8"))
    backbone.mkdir()
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json"):
        (source / name).rename(backbone / name)
    modules[0]["path"] = "0_Transformer"
    (source / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (source / "provenance.json").unlink()
    vocabulary = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    (backbone / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    settings = {"do_lower_case": True, "model_max_length": 128}
    (backbone / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    release(ReleaseRecipe(retriever=source, out=tmp_path / "release"))
    stock = AutoTokenizer.from_pretrained(backbone)
    released = AutoTokenizer.from_pretrained(tmp_path / "release")
    assert released.pad_token_id == stock.pad_token_id
    for text in SAMPLE_TEXTS[:-1]:
        assert released(text)["input_ids"] == stock(text)["input_ids"]


def test_two_encoders_are_not_released(tmp_path: Path) -> None:
    for side in ("query", "document"):
        shutil.copytree(NANO, tmp_path / "pair" / f"{side}_encoder")
    with pytest.raises(ModelFolderError, match="has one encoder for queries and another one for documents"):
        release(ReleaseRecipe(retriever=tmp_path / "pair", out=tmp_path / "release"))
