"""Folders laid out like `facebook/drama-base`: encoded right, their code never run, at their true size."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from drama_models import DramaModel, Encoder, Profile
from drama_models.profile import is_drama
from tests.drama_models.published import write_published_folder

TEXTS = ["put two tables together", "a graph", "digest of the bytes in a file and much more text to pad the others"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
SMALL |= {"head_dim": 16, "intermediate_size": 96, "vocab_size": 400}


@pytest.fixture(scope="module")
def drama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """847 MB of random weights in the published shape."""
    return write_published_folder(tmp_path_factory.mktemp("drama-base"), with_eos=False)


def reference(folder: Path, texts: list[str], prompt: str) -> np.ndarray:
    """The stock Llama with an all-visible mask given by hand, one text at a time, EOS set by hand."""
    config = LlamaConfig.from_pretrained(folder)
    model = LlamaModel.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inner = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[tokenizer.bos_token_id, *inner, tokenizer.eos_token_id]])
        visible = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
        with torch.no_grad():
            rows.append(model(input_ids=ids, attention_mask=visible).last_hidden_state[0].mean(dim=0).numpy())
    stacked = np.stack(rows)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


@pytest.mark.slow
def test_the_true_shape_has_the_published_size_and_is_encoded_right(drama_base: Path) -> None:
    model = DramaModel.from_pretrained(drama_base)
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(parameters.values()) == 211_766_016
    assert sum(parameters.values()) - parameters["embed_tokens.weight"] == 113_265_408
    tokenizer = AutoTokenizer.from_pretrained(drama_base)
    by_class = model.eval().encode_queries(tokenizer, TEXTS).numpy()
    del model
    encoder = Encoder.from_pretrained(drama_base, runtime="torch")
    expected = reference(drama_base, TEXTS, "Query: ")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(by_class, expected, atol=1e-5)
    assert not (drama_base / "REMOTE_CODE_RAN").exists()


@pytest.mark.parametrize("with_eos", [True, False], ids=["newer tokenizer", "first tokenizer"])
def test_eos_is_there_once_whatever_the_tokenizer_does(tmp_path: Path, with_eos: bool) -> None:
    folder = write_published_folder(tmp_path, with_eos=with_eos, **SMALL)
    encoder = Encoder.from_pretrained(folder, runtime="torch")
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), reference(folder, TEXTS, ""), atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_class = DramaModel.from_pretrained(folder).eval().encode_documents(tokenizer, TEXTS)
    np.testing.assert_allclose(by_class.numpy(), reference(folder, TEXTS, ""), atol=1e-5)
    assert not (folder / "REMOTE_CODE_RAN").exists()


def test_profile_of_a_published_folder(tmp_path: Path) -> None:
    profile = Profile.from_folder(write_published_folder(tmp_path, with_eos=True, **SMALL))
    assert profile.bidirectional
    assert profile.set_ends
    assert (profile.pooling, profile.query_prompt, profile.document_prompt) == ("mean", "Query: ", "")
    assert (profile.hidden_size, profile.max_length, profile.dims) == (64, 8192, ())


def test_published_scores(tmp_path: Path) -> None:
    """The two score tables of the model's own page; its texts are read from the page that lies in the folder."""
    if "DRAMA_BASE" not in os.environ:
        pytest.skip("set DRAMA_BASE to a folder with the published facebook/drama-base to check its scores")
    folder = Path(os.environ["DRAMA_BASE"])
    queries, documents = texts_of_page((folder / "README.md").read_text(encoding="utf-8"))
    tables = {None: [[0.5310, 0.0821], [0.1298, 0.6181]], 256: [[0.6031, 0.1750], [0.2005, 0.7251]]}
    encoder = Encoder.from_pretrained(folder, runtime="torch")
    for dim, expected in tables.items():
        scores = encoder.encode_queries(queries, dim=dim) @ encoder.encode_documents(documents, dim=dim).T
        np.testing.assert_allclose(scores, expected, atol=2e-3)


def texts_of_page(page: str) -> tuple[list[str], list[str]]:
    """The lists called `queries` and `documents` in the first Python example of a model page that has both."""
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        found = {}
        for node in ast.walk(ast.parse(code)):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.List)
            ):
                found[node.targets[0].id] = ast.literal_eval(node.value)
        if {"queries", "documents"} <= set(found):
            return found["queries"], found["documents"]
    raise AssertionError("the model page has no example with lists called queries and documents")


def test_texts_are_found_on_a_model_page() -> None:
    blocks = ["import torch", "queries = [\n 'a',\n]\ndocuments = ['b', \"c\"]\nmodel(queries)"]
    page = "# x\n" + "".join(f"```python\n{block}\n```\n" for block in blocks)
    assert texts_of_page(page) == (["a"], ["b", "c"])


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        ({"architectures": ["DramaModel"]}, True),
        ({"auto_map": {"AutoModel": "modeling_drama_non_nested.DramaModel"}}, True),
        ({"architectures": ["LlamaForCausalLM"]}, False),
        ({"auto_map": {"AutoModel": "modeling_other.OtherModel"}}, False),
        (json.loads("{}"), False),
    ],
)
def test_drama_folders_are_told_by_class_or_remote_code(config: dict[str, object], answer: bool) -> None:
    assert is_drama(config) is answer
