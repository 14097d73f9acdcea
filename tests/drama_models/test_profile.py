"""What a profile takes a folder for, against the class that transformers has for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoModel

from drama_models import Encoder
from drama_models.attention import sees_later_tokens
from drama_models.errors import AttentionDirectionError, ModelFolderError
from drama_models.profile import DECODERS, Profile
from drama_models.runtimes.torch_runtime import TorchRuntime

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def saved(folder: Path, kind: str, **changes: Any) -> Path:
    """A folder of a small random model of this type."""
    AutoModel.from_config(AutoConfig.for_model(kind, **SIZES | changes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", DECODERS)
def test_what_counts_as_a_decoder_is_causal_in_transformers(kind: str) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, num_key_value_heads=2))
    assert not sees_later_tokens(model)


def test_a_decoder_in_no_list_runs_once_its_folder_says_that_it_is_causal(tmp_path: Path) -> None:
    folder = saved(tmp_path / "arcee", "arcee", num_key_value_heads=2)
    with pytest.raises(AttentionDirectionError, match=r"taken for a bidirectional arcee.* set `is_causal: true`"):
        TorchRuntime(folder, Profile.from_folder(folder), "cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": True}))
    found = TorchRuntime(folder, Profile.from_folder(folder), "cpu").embed([np.array([0, 5, 1])])
    assert np.isfinite(found).all()


def test_a_direction_that_transformers_does_not_run_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bert", "bert")
    profile = replace(Profile.from_folder(folder), bidirectional=False)
    with pytest.raises(AttentionDirectionError, match=r"taken for a causal bert, which .* set `is_causal: false`"):
        TorchRuntime(folder, profile, "cpu")


@pytest.mark.parametrize(("kind", "key"), [("bert", "hidden_size"), ("distilbert", "dim"), ("t5", "hidden_size")])
def test_a_folder_without_a_hidden_size_is_named(tmp_path: Path, kind: str, key: str) -> None:
    folder = saved(tmp_path / kind, kind, **{key: 32})
    assert kind == "t5" or Profile.from_folder(folder).hidden_size == 32
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in config if name != key}))
    with pytest.raises(ModelFolderError, match=rf"no whole number `hidden_size`.* unless this {kind} is of a family"):
        Profile.from_folder(folder)


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"query": "Question: "}, None),
        ({"query": "Question: "}, "query"),
        ({"query": "Question: ", "passage": "Text: "}, None),
        ({"clustering": "Topic: "}, "clustering"),
        ({"query": "Question: ", "document": "Text: "}, "query"),
        ({}, None),
    ],
)
def test_prompts_are_those_of_encode_query_and_encode_document(
    tmp_path: Path, prompts: dict[str, str], default: str | None
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree("demo/nano", tmp_path / "nano"))
    stored = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stored), encoding="utf-8")
    stock, encoder = SentenceTransformer(str(folder), device="cpu"), Encoder.from_pretrained(folder, verify=False)
    texts = ["sort a list"]
    np.testing.assert_allclose(encoder.encode_queries(texts), stock.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_documents(texts), stock.encode_document(texts), atol=1e-5)
