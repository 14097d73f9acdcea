"""What the small files of a release say, read back by the libraries that they are written for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from drama_models.model_folder import read_json
from drama_models.profile import Profile
from export.client_files import release_config, sentence_transformers_files, tokenizer_files

if TYPE_CHECKING:
    from pathlib import Path


def test_config_says_the_direction_to_every_client(release_folder: Path) -> None:
    config = read_json(release_folder / "config.json")
    assert config["is_causal"] is False  # transformers >= 5.2, vLLM, llama.cpp
    assert config["use_bidirectional_attention"] is True  # text-embeddings-inference
    assert config["auto_map"] == {"AutoModel": "modeling_drama.DramaModel"}  # transformers 4
    assert config["architectures"] == ["LlamaModel"]
    assert config["matryoshka_dimensions"] == [48, 16]


def test_rotary_settings_are_written_for_both_transformers() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    config = {"hidden_size": 32, "num_attention_heads": 4, "rope_parameters": rope}
    written = release_config(config, profile_of(), pad_token_id=2)
    assert written["rope_parameters"] == rope
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    assert written["head_dim"] == 8


def test_stock_libraries_read_back_the_profile(release_folder: Path) -> None:
    config = AutoConfig.from_pretrained(release_folder)
    assert (config.is_causal, config.rope_parameters["rope_theta"]) == (False, 10_000.0)
    model = SentenceTransformer(str(release_folder), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model[1].pooling_mode == "mean"
    assert model.max_seq_length == Profile.from_folder(release_folder).max_length == 64
    assert model.prompts == {"query": "Query: ", "document": ""}
    tokenizer = AutoTokenizer.from_pretrained(release_folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert (tokenizer.pad_token, tokenizer.padding_side, tokenizer.model_max_length) == ("<pad>", "right", 64)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def test_files_follow_the_profile() -> None:
    files = sentence_transformers_files(replace(profile_of(), pooling="last", normalise=False))
    assert [module["path"] for module in files["modules.json"]] == ["", "1_Pooling"]
    assert files["1_Pooling/config.json"]["pooling_mode"] == "lasttoken"
    assert files["1_Pooling/config.json"]["pooling_mode_lasttoken"] is True
    assert files["1_Pooling/config.json"]["pooling_mode_mean_tokens"] is False
    assert files["config_sentence_transformers.json"]["similarity_fn_name"] == "dot"


def test_a_causal_profile_asks_for_no_code() -> None:
    written = release_config(
        {"hidden_size": 32, "num_attention_heads": 4, "auto_map": {"AutoModel": "evil.Model"}},
        replace(profile_of(), bidirectional=False),
        pad_token_id=2,
    )
    assert "auto_map" not in written
    assert written["is_causal"] is True


def test_a_missing_pad_token_becomes_eos() -> None:
    files = tokenizer_files({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}, max_length=32)
    assert files["special_tokens_map.json"] == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    assert files["tokenizer_config.json"]["model_max_length"] == 32
    with pytest.raises(KeyError):
        tokenizer_files({"bos_token": "<s>"}, max_length=32)


def profile_of() -> Profile:
    return Profile(
        hidden_size=32,
        bidirectional=True,
        pooling="mean",
        query_prompt="Query: ",
        document_prompt="",
        set_ends=False,
        max_length=64,
        normalise=True,
        dims=(32, 16),
    )
