"""A release, loaded by stock libraries in processes that never import our package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from drama_models import Encoder
from drama_models.errors import ModelFolderError
from drama_models.model_folder import read_json
from drama_models.profile import Profile
from drama_models.provenance import chain, read_provenance
from drama_models.sample_texts import SAMPLE_TEXTS
from export.client_environments import CLIENTS, CLIENTS_FOLDER, Client, this_environment
from export.client_files import release_config
from export.release import ReleaseRecipe, release
from export.to_onnx import write_onnx
from export.verification import check_verification
from export.verify import verify
from tests.conftest import TEXTS, make_llama
from training.start import write_start_folder

STOCK_CLIENT = Path(__file__).parent / "stock_client.py"
HERE = [client for client in CLIENTS if this_environment().version(client)]


@pytest.mark.parametrize("client", HERE, ids=lambda client: client.name)
def test_stock_client_agrees_with_our_encoder(client: Client, release_folder: Path, tmp_path: Path) -> None:
    texts = [*SAMPLE_TEXTS, *TEXTS[:20]]
    batches = tmp_path / "batches.json"
    batches.write_text(json.dumps([texts[:15], texts[15:17], texts[17:]]), encoding="utf-8")
    script, target = CLIENTS_FOLDER / client.script, tmp_path / "vectors.npy"
    command = [sys.executable, str(STOCK_CLIENT), str(script), str(release_folder), str(batches)]
    subprocess.run([*command, str(target)], check=True, cwd=tmp_path, capture_output=True)
    theirs = np.load(target, allow_pickle=False)
    for runtime in ("torch", "onnx"):
        ours = Encoder.from_pretrained(release_folder, runtime=runtime).encode_documents(texts)
        cosine = (ours * theirs).sum(axis=1)
        assert cosine.min() >= 0.9999, runtime


def test_late_tokens_change_the_first_state_in_a_stock_automodel(release_folder: Path) -> None:
    model = AutoModel.from_pretrained(release_folder).eval()
    assert type(model).__name__ == "LlamaModel"
    ids = torch.arange(10, 22)[None]
    changed = ids.clone()
    changed[0, -1] = 40
    with torch.no_grad():
        before, after = (model(input_ids=row).last_hidden_state[0, 0] for row in (ids, changed))
        padded = torch.nn.functional.pad(ids, (0, 5), value=2)
        mask = (torch.arange(17) < 12)[None].long()
        beside_padding = model(input_ids=padded, attention_mask=mask).last_hidden_state[0, 0]
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(beside_padding, before, atol=1e-5, rtol=0)


def test_sentence_transformers_prompts_and_truncation_are_ours(release_folder: Path) -> None:
    model = SentenceTransformer(str(release_folder), device="cpu", truncate_dim=16)
    encoder = Encoder.from_pretrained(release_folder, dim=16)
    queries = model.encode_query(TEXTS[:8], normalize_embeddings=True)
    documents = model.encode_document(TEXTS[:8], normalize_embeddings=True)
    np.testing.assert_allclose(queries, encoder.encode_queries(TEXTS[:8]), atol=1e-5)
    np.testing.assert_allclose(documents, encoder.encode_documents(TEXTS[:8]), atol=1e-5)


def test_release_holds_what_clients_read_and_nothing_unsafe(release_folder: Path) -> None:
    names = {str(path.relative_to(release_folder)) for path in release_folder.rglob("*") if path.is_file()}
    assert names == {
        "1_Pooling/config.json",
        "2_Normalize/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "modeling_drama.py",
        "model.safetensors",
        "modules.json",
        "onnx/model.onnx",
        "provenance.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "verification.json",
    }


def test_card_is_written_from_the_provenance_chain(release_folder: Path) -> None:
    card = (release_folder / "README.md").read_text(encoding="utf-8")
    record = read_provenance(release_folder)
    assert record is not None
    assert [stage["stage"] for stage in chain(record)] == ["training.train", "export.release"]
    for stage in chain(record):
        assert stage["stage"] in card
        for entry in stage["inputs"].values():
            assert entry["sha256"][:12] in card
    parity = record["figures"]["parity"]
    assert {entry["client"] for entry in parity} == {client.name for client in HERE}
    assert all(f"{entry['largest_difference']:.1e}" in card for entry in parity)
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card
    assert "usable at 48, 16" in card


def test_a_graph_that_encodes_otherwise_is_not_published(release_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(release_folder, broken)
    before = (broken / "config.json").read_bytes()
    causal = read_json(broken / "config.json") | {"is_causal": True, "use_bidirectional_attention": False}
    (broken / "config.json").write_text(json.dumps(causal), encoding="utf-8")
    write_onnx(broken)  # the graph is causal now
    (broken / "config.json").write_bytes(before)
    with pytest.raises(ModelFolderError, match=r"onnxruntime .* disagrees on broken: smallest cosine"):
        verify(broken, TEXTS[:4])


def test_a_folder_that_a_client_cannot_load_is_not_published(release_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(release_folder, broken)
    (broken / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match=r"onnxruntime [\d.]+ cannot load broken"):
        verify(broken, TEXTS[:4])


def test_a_failed_release_leaves_nothing_behind(retriever_folder: Path, tmp_path: Path) -> None:
    retriever = tmp_path / "retriever"
    shutil.copytree(retriever_folder, retriever)
    config = read_json(retriever / "config.json") | {"hidden_act": "gelu"}
    (retriever / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="'gelu' is not built here"):
        release(ReleaseRecipe(retriever=retriever, out=tmp_path / "release"))
    assert [path.name for path in tmp_path.iterdir()] == ["retriever"]


def test_weights_beyond_the_protobuf_limit_go_beside_the_graph(
    release_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(release_folder, folder)
    before = Encoder.from_pretrained(folder, runtime="onnx-file").encode_documents(TEXTS[:4])
    shutil.rmtree(folder / "onnx")
    monkeypatch.setattr("export.to_onnx.MAX_INLINE_BYTES", 1000)
    write_onnx(folder)
    assert (folder / "onnx" / "model.onnx_data").stat().st_size > 10 * (folder / "onnx" / "model.onnx").stat().st_size
    onnx.checker.check_model(str(folder / "onnx" / "model.onnx"))
    after = Encoder.from_pretrained(folder, runtime="onnx-file", verify=False).encode_documents(TEXTS[:4])
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_tokenizers_agree_on_every_sample(release_folder: Path) -> None:
    from tokenizers import Tokenizer

    stock = AutoTokenizer.from_pretrained(release_folder)
    plain = Tokenizer.from_file(str(release_folder / "tokenizer.json"))
    plain.enable_truncation(64)
    for text in SAMPLE_TEXTS:
        assert stock(text, truncation=True)["input_ids"] == plain.encode(text).ids


@pytest.mark.parametrize(
    ("pooling", "normalise", "words"),
    [
        ("lasttoken", True, ["the last hidden state of the last token, cut to", '"last_token", normalize: true']),
        ("cls", False, ["of the first token, compared by inner product", '"cls", normalize: false']),
    ],
)
def test_all_of_how_a_retriever_encodes_is_carried_over(
    retriever_folder: Path, tmp_path: Path, pooling: str, normalise: bool, words: list[str]
) -> None:
    source, out = shutil.copytree(retriever_folder, tmp_path / "source"), tmp_path / "out"
    stored: dict[str, Any] = {"prompts": {"query": "", "document": "Passage: ", "sts": "Same: "}}
    settings: dict[str, Any] = {"1_Pooling/config.json": {"pooling_mode": pooling, "include_prompt": True}}
    if normalise:  # models with a format for instructions compare cosines in any case
        stored["title_separator"] = " [SEP] "
        stored["instruct_format"] = {"instruction": "Do: ", "query": "\nAsk: ", "response": "\nSay: "}
        settings["examples.json"] = {"sts": [{"instruct": "Find it.", "query": "a", "response": "b"}]}
    else:
        modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        settings["modules.json"] = [module for module in modules if "Normalize" not in module["type"]]
    for name, content in (settings | {"config_sentence_transformers.json": stored}).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(json.dumps(content), encoding="utf-8")
    parity = release(ReleaseRecipe(retriever=source, out=out, license="apache-2.0"))
    made = Profile.from_folder(out)  # a drama model, which has its ends whatever the tokenizer says
    assert made == replace(Profile.from_folder(source), set_ends=True)
    assert made.normalise == normalise
    assert max(entry.largest_difference for entry in parity) < 1e-4
    assert all(word in (out / "README.md").read_text(encoding="utf-8") for word in words)
    assert {"automodel", "onnxruntime", "sentence_transformers"} <= {entry.client for entry in parity}
    check_verification(out)
    assert "documents with `Passage: `" in (out / "README.md").read_text(encoding="utf-8")


def test_a_model_without_ends_is_released_though_an_empty_text_has_no_vector(
    llama_folder: Path, tmp_path: Path
) -> None:
    parity = release(ReleaseRecipe(retriever=llama_folder, out=tmp_path / "out", license="apache-2.0"))
    assert {"automodel", "onnxruntime", "sentence_transformers"} <= {entry.client for entry in parity}
    assert not Encoder.from_pretrained(tmp_path / "out").encode_documents([""]).any()


@pytest.fixture(scope="module")
def with_biases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever whose every linear layer has a bias that matters; transformers starts them at zero."""
    work = tmp_path_factory.mktemp("biases")
    make_llama(work / "llama", attention_bias=True, mlp_bias=True)
    write_start_folder(work / "llama", folder := work / "retriever", bidirectional=True)
    state = load_file(folder / "model.safetensors")
    state = {name: torch.randn_like(value) / 2 if name.endswith("bias") else value for name, value in state.items()}
    save_file(state, folder / "model.safetensors")
    return folder


def test_biases_are_part_of_a_release_and_of_its_graphs(with_biases: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    release(ReleaseRecipe(retriever=with_biases, out=out, onnx=("fp32", "fp16", "int8")))
    stock = AutoModel.from_pretrained(with_biases).eval()
    ids = torch.arange(10, 22)[None]
    with torch.no_grad():
        states = stock(input_ids=ids).last_hidden_state.numpy()
    for graph, bound in (("model", 1e-4), ("model_fp16", 0.05), ("model_int8", 1.0)):
        session = InferenceSession(str(out / "onnx" / f"{graph}.onnx"), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 12), dtype=np.int64)})
        assert np.abs(found - states).max() < bound, graph


def test_what_a_release_would_leave_behind_is_noticed(
    retriever_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "default", "rope_theta": 2.0}

    def with_other_positions(*arguments: Any, **named: Any) -> dict[str, Any]:
        return release_config(*arguments, **named) | {"rope_parameters": rope}

    monkeypatch.setattr("export.release_settings.release_config", with_other_positions)
    with pytest.raises(ModelFolderError, match="would not encode as that folder does"):
        release(ReleaseRecipe(retriever=retriever_folder, out=tmp_path / "release"))


def test_biases_that_config_json_announces_have_to_be_there(with_biases: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(with_biases, tmp_path / "source"))
    state = load_file(source / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.bias"]
    save_file(state, source / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"has no tensor 'layers\.1\.mlp\.up_proj\.bias'"):
        release(ReleaseRecipe(retriever=source, out=tmp_path / "release"))


def test_a_size_that_most_clients_would_not_heed_is_refused(retriever_folder: Path, tmp_path: Path) -> None:
    source, out = Path(shutil.copytree(retriever_folder, tmp_path / "source")), tmp_path / "out"
    path = source / "config_sentence_transformers.json"
    path.write_text(json.dumps(read_json(path) | {"truncate_dim": 16}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"asks for 16 coordinates by the truncate_dim .* with --dims"):
        release(ReleaseRecipe(retriever=source, out=out, license="apache-2.0"))
    assert not out.exists()
