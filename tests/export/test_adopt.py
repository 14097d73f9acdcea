"""Adoption of published drama folders; the oracle is a stock Llama with an all-visible mask, ends set by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from drama_models import Encoder
from drama_models.errors import DimensionError, ModelFolderError, RecipeError
from drama_models.model_folder import read_json
from drama_models.provenance import read_provenance
from export.adopt import AdoptRecipe, adopt, origin_of
from export.golden_scores import DRAMA_BASE, golden_difference
from export.verification import check_verification
from tests.drama_models.published import write_published_folder
from tests.drama_models.test_hub import COMMIT, REPOSITORY, Hub
from tests.drama_models.test_published_folder import SMALL, TEXTS, reference

ROOT = Path(__file__).parents[2]
LICENSE = "cc-by-nc-4.0"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the first revision: attention in remote code, no EOS in the tokenizer, and here no pad token either."""
    folder = write_published_folder(tmp_path_factory.mktemp("hub") / "drama-small", with_eos=False, **SMALL)
    settings = read_json(folder / "tokenizer_config.json")
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "README.md").write_text(f"---\nlicense: {LICENSE}\n---\n# drama-small\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Paths that the hub was asked for."""
    return []


@pytest.fixture(scope="module")
def adopted(published: Path, asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adopted by its name on a stand-in of the hub, as people type it."""
    folder = tmp_path_factory.mktemp("adopted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"folder": published, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "export", "adopt", REPOSITORY, "--out", str(folder / "small")]
    command += ["--license", LICENSE, "--max-length", "96", "--onnx", "fp32,fp16", "--dims", "32,64"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    server.shutdown()
    assert result.returncode == 0, result.stderr
    assert "| onnxruntime, model_fp16 " in result.stdout
    return folder / "small"


def recipe(published: Path | str, out: Path, **changes: object) -> AdoptRecipe:
    settings: dict[str, object] = {"license": LICENSE, "max_length": 96}
    return AdoptRecipe(model=str(published), out=out, **(settings | changes))  # type: ignore[arg-type]


def test_stock_sentence_transformers_encodes_it_as_published(published: Path, adopted: Path) -> None:
    model = SentenceTransformer(str(adopted), device="cpu")
    np.testing.assert_allclose(model.encode_query(TEXTS), reference(published, TEXTS, "Query: "), atol=1e-5)
    np.testing.assert_allclose(model.encode_document(TEXTS), reference(published, TEXTS, ""), atol=1e-5)
    for runtime in ("torch", "onnx-file"):
        ours = Encoder.from_pretrained(adopted, runtime=runtime).encode_documents(TEXTS)
        np.testing.assert_allclose(ours, reference(published, TEXTS, ""), atol=1e-5)


def test_published_code_never_runs_and_is_not_fetched(published: Path, adopted: Path, asked: list[str]) -> None:
    assert [path for path in asked if path.endswith("model.safetensors")]
    assert not [path for path in asked if path.endswith((".py", ".bin"))]
    assert not (published / "REMOTE_CODE_RAN").exists()
    assert "REMOTE_CODE_RAN" not in (adopted / "modeling_drama.py").read_text(encoding="utf-8")
    assert "class DramaModel(LlamaModel)" in (adopted / "modeling_drama.py").read_text(encoding="utf-8")


def test_what_the_published_folder_lacks_is_there(published: Path, adopted: Path) -> None:
    config = read_json(adopted / "config.json")
    assert (config["is_causal"], config["use_bidirectional_attention"]) == (False, True)
    assert config["matryoshka_dimensions"] == [64, 32]
    assert read_json(adopted / "1_Pooling" / "config.json")["pooling_mode"] == "mean"
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (published, adopted))
    assert after("a")["input_ids"] == [after.bos_token_id, *before("a")["input_ids"], after.eos_token_id]
    assert (after.pad_token, config["pad_token_id"]) == ("</s>", after.eos_token_id)
    old, new = (read_json(folder / "tokenizer.json") for folder in (published, adopted))
    assert {name for name in new if new[name] != old[name]} == {"post_processor"}


def test_card_and_provenance_name_source_and_licence(published: Path, adopted: Path) -> None:
    record = read_provenance(adopted)
    assert record is not None
    assert (record["stage"], record["recipe"]["model"]) == ("export.adopt", REPOSITORY)
    assert record["inputs"]["model"]["name"] == COMMIT
    card = (adopted / "README.md").read_text(encoding="utf-8")
    assert f"license: {LICENSE}\n" in card
    assert f"base_model: {REPOSITORY}\n" in card
    assert f"`{REPOSITORY}`, number for number" in card
    assert {"modeling_drama.py", "onnx/model_fp16.onnx"} < set(check_verification(adopted))
    local = origin_of(recipe(published, adopted)).settings
    assert isinstance(local, dict)
    assert local["model"] == "drama-small"  # no path of this machine


def test_another_licence_than_the_published_one_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"pass --license cc-by-nc-4\.0"):
        adopt(recipe(published, tmp_path / "out", license="apache-2.0"))
    with pytest.raises(DimensionError, match="between 1 and the model's 64"):
        adopt(recipe(published, tmp_path / "out", dims=(64, 128), license=""))  # the card's
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    (broken / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    with pytest.raises(DimensionError):  # the card says nothing, and the next check has its turn
        adopt(recipe(broken, tmp_path / "out", dims=(64, 128)))
    with pytest.raises(RecipeError, match=r"states no licence; pass --license, such as cc-by-nc-4\.0"):
        adopt(recipe(broken, tmp_path / "out", license=""))
    (broken / "README.md").write_text("---\nlicense: llama3.2\n---\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="pass --name Llama-out"):
        adopt(recipe(broken, tmp_path / "out", license=""))
    assert not (tmp_path / "out").exists()


def test_other_weights_fail_the_published_scores(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DimensionError):
        adopt(recipe(published, tmp_path / "out", golden=True))  # too small for the table of 256
    with pytest.raises(ModelFolderError, match="off those published for facebook/drama-base"):
        golden_difference(published, replace(DRAMA_BASE, tables={None: DRAMA_BASE.tables[None]}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dim", [None, 24])
def test_scores_of_the_right_weights_pass(published: Path, adopted: Path, dim: int | None) -> None:
    queries, documents = list(DRAMA_BASE.queries), [text[:20] for text in DRAMA_BASE.documents]
    cut = [reference(published, texts, prompt)[:, :dim] for texts, prompt in ((queries, "Query: "), (documents, ""))]
    query, document = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in cut)
    table = tuple(map(tuple, (query @ document.T).tolist()))
    golden = replace(DRAMA_BASE, documents=tuple(documents), tables={dim: table}, tolerance=1e-4)
    assert golden_difference(published, golden) < 1e-5
    assert golden_difference(adopted, golden) < 1e-5


def test_what_is_no_drama_folder_or_a_pickle_is_refused(published: Path, llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is no published drama folder"):
        adopt(recipe(llama_folder, tmp_path / "out"))
    for path in published.iterdir():
        if path.name != "model.safetensors" and path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelFolderError, match="which is never loaded"):
        adopt(recipe(tmp_path, tmp_path / "out"))
