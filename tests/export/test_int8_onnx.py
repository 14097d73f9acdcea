"""The graph in eight bits: portable, as close to float32 as it says, and refused or mended where it is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from drama_models.errors import PrecisionError
from drama_models.model_folder import read_json
from drama_models.runtimes.padding import pad
from export.int8_onnx import INT8_GRAPHS, write_int8_onnx
from export.release import ReleaseRecipe, release
from export.to_onnx import write_onnx
from tests.conftest import TEXTS, make_llama
from tests.drama_models.test_int8 import MODERATE, smallest_cosine, stress
from training.start import write_start_folder


@pytest.fixture(scope="module")
def moderate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder wide enough for eight bits."""
    work = tmp_path_factory.mktemp("int8")
    make_llama(work / "llama", **MODERATE)
    write_start_folder(work / "llama", work / "retriever", bidirectional=True)
    return work / "retriever"


def embed(graph: Path, texts: list[np.ndarray]) -> np.ndarray:
    """Mean over the states of each text, all texts in one padded batch."""
    session = InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    ids, mask = pad(texts)
    (states,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    pooled: np.ndarray = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled


def some_texts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 300, length) for length in (40, 7, 1, 23)]


@pytest.mark.parametrize("factor", [1, 100])
def test_graph_keeps_embeddings_even_of_stressed_weights(moderate: Path, tmp_path: Path, factor: float) -> None:
    folder = Path(shutil.copytree(moderate, tmp_path / "folder"))
    write_onnx(folder)
    expected = embed(folder / "onnx" / "model.onnx", some_texts())
    stress(folder, factor)
    report = write_int8_onnx(folder)
    found = embed(folder / "onnx" / "model_int8.onnx", some_texts())
    assert (report.layers_in_fp32, report.embedding) == ((), "int8")
    assert report.smallest_cosine >= 0.997
    assert smallest_cosine(found, expected) >= 0.997
    graphs = [folder / name for name in INT8_GRAPHS]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    assert graphs[0].stat().st_size < 0.27 * (folder / "onnx" / "model.onnx").stat().st_size


def test_graph_is_of_standard_operators_and_takes_what_the_others_take(moderate: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moderate, tmp_path / "folder"))
    write_int8_onnx(folder)
    model = onnx.load(folder / "onnx" / "model_quantized.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 7 * MODERATE["num_hidden_layers"]
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["last_hidden_state"]


def test_a_text_depends_neither_on_its_batch_mates_nor_on_padding(moderate: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moderate, tmp_path / "folder"))
    write_int8_onnx(folder)
    graph = folder / "onnx" / "model_int8.onnx"
    alone = np.concatenate([embed(graph, [text]) for text in some_texts()])
    np.testing.assert_allclose(embed(graph, some_texts()), alone, atol=1e-4)


def test_what_loses_too_much_stays_in_float32_or_is_refused(moderate: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(moderate, tmp_path / "folder"))
    texts = TEXTS[:6]
    reached = write_int8_onnx(folder, texts).smallest_cosine
    wanted = (1 + reached) / 2
    report = write_int8_onnx(folder, texts, min_cosine=wanted)
    assert report.smallest_cosine >= wanted
    assert report.layers_in_fp32 or report.embedding == "fp32"
    kinds = {entry.name: entry.data_type for entry in onnx.load(folder / INT8_GRAPHS[0]).graph.initializer}
    for layer in range(MODERATE["num_hidden_layers"]):
        assert (f"layers.{layer}.mlp.up_proj.weight" in kinds) == (layer in report.layers_in_fp32)
    assert ("embed_tokens.weight" in kinds) == (report.embedding == "fp32")
    with pytest.raises(PrecisionError, match=r"0\.99999 is asked for"):
        write_int8_onnx(folder, texts, min_cosine=0.99999)


def test_release_with_all_graphs_says_how_close_they_are_and_where_their_weights_lie(
    moderate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.to_onnx.MAX_INLINE_BYTES", 6_000_000)  # float32 is larger, the others are not
    out = tmp_path / "release"
    parity = release(ReleaseRecipe(retriever=moderate, out=out, onnx=("fp32", "fp16", "int8")))
    cosines = {entry.client: entry.smallest_cosine for entry in parity if entry.client.startswith("onnxruntime")}
    assert set(cosines) == {"onnxruntime", *(f"onnxruntime, model_{name}" for name in ("fp16", "int8", "quantized"))}
    assert cosines["onnxruntime"] > 0.999999
    assert 0.995 <= cosines["onnxruntime, model_int8"] == cosines["onnxruntime, model_quantized"] < 0.99999
    figures: dict[str, Any] = read_json(out / "provenance.json")["figures"]
    assert figures["int8_graph"]["smallest_cosine"] >= 0.997
    assert "int8_graph: smallest_cosine 0.99" in (out / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (out / "onnx").iterdir()} == {
        "model.onnx", "model.onnx_data", "model_fp16.onnx", "model_int8.onnx", "model_quantized.onnx"
    }  # fmt: skip
    config = read_json(out / "config.json")  # where transformers.js looks for it
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": 1}}
