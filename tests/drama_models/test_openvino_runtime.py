"""OpenVINO straight from safetensors, against transformers' own Llama on each text alone."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from drama_models import Encoder
from drama_models.errors import DeviceError, MissingExtraError
from drama_models.runtimes import openvino_runtime
from drama_models.runtimes.openvino_runtime import OpenVinoRuntime, has_bf16
from tests.conftest import TEXTS, make_llama
from tests.drama_models.published import write_published_folder
from tests.drama_models.test_llama_runtime import PUBLISHED, SHAPES, expected, profile_of, random_texts

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
WIDE |= {"num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 4, "initializer_range": 0.02}
bf16_is_native = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (found * wanted).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_pooled_states_are_those_of_transformers(tmp_path: Path, changes: dict[str, Any], bidirectional: bool) -> None:
    folder = make_llama(tmp_path, **changes)
    if "attention_bias" in changes:  # transformers starts biases at zero, where a missing one would not show
        state = load_file(folder / "model.safetensors")
        drawn = {name: torch.randn_like(value) if name.endswith("bias") else value for name, value in state.items()}
        save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    for pooling in ("mean", "last", "cls"):
        profile = profile_of(bidirectional=bidirectional, pooling=pooling)
        vectors = OpenVinoRuntime(folder, profile, threads=1).embed(random_texts())
        assert vectors.dtype == np.float32
        # float32 in another order of summation
        np.testing.assert_allclose(vectors, expected(folder, random_texts(), profile), atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_llama(tmp_path)
    state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vectors = OpenVinoRuntime(folder, profile_of(), threads=1).embed(random_texts())
    np.testing.assert_allclose(vectors, expected(folder, random_texts(), profile_of()), atol=5e-5)


def test_a_text_depends_neither_on_batch_mates_nor_on_what_ran_before(tmp_path: Path) -> None:
    runtime = OpenVinoRuntime(make_llama(tmp_path), profile_of(), threads=1)
    alone = np.concatenate([runtime.embed([text]) for text in random_texts()])
    np.testing.assert_allclose(runtime.embed(random_texts()), alone, atol=1e-5)
    nothing = runtime.embed([np.empty(0, dtype=np.int64), random_texts()[0]])
    np.testing.assert_array_equal(nothing[0], np.zeros(48))
    np.testing.assert_allclose(nothing[1], alone[0], atol=1e-5)


def test_calls_from_many_threads_get_their_own_vectors(tmp_path: Path) -> None:
    runtime = OpenVinoRuntime(make_llama(tmp_path), profile_of(), threads=1)
    texts = [np.random.default_rng(seed).integers(0, 300, 3 + seed) for seed in range(24)]
    alone = [runtime.embed([text]) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda text: runtime.embed([text]), texts))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-5)


@bf16_is_native
def test_bfloat16_is_close_to_float32_and_not_equal(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, **WIDE)
    exact = OpenVinoRuntime(folder, profile_of(hidden_size=256)).embed(random_texts())
    found = OpenVinoRuntime(folder, profile_of(hidden_size=256), "bf16").embed(random_texts())
    assert 0.999 < cosines(found, exact).min() < 1 - 1e-6


@bf16_is_native
def test_bfloat16_is_openvinos_where_it_is_installed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_published_folder(tmp_path, with_eos=True, **PUBLISHED)
    with caplog.at_level(logging.INFO):
        encoder = Encoder.from_pretrained(tmp_path, precision="bf16")
    assert (encoder.runtime.name, encoder.runtime.precision) == ("openvino", "bf16")
    assert "chose OpenVINO from safetensors, bf16" in caplog.text
    exact = Encoder.from_pretrained(tmp_path, runtime="torch", device="cpu").encode_queries(TEXTS)
    assert (encoder.encode_queries(TEXTS) * exact).sum(axis=1).min() > 0.999


def test_bfloat16_is_refused_on_a_processor_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published_folder(tmp_path, with_eos=True, **PUBLISHED)
    monkeypatch.setattr(openvino_runtime, "has_bf16", lambda *_: False)
    with pytest.raises(DeviceError, match=r"no bf16 for OpenVINO; use precision='fp32', or runtime='torch'"):
        Encoder.from_pretrained(tmp_path, runtime="openvino", precision="bf16")
    assert Encoder.from_pretrained(tmp_path, precision="bf16").runtime.name.startswith("torch")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_refused_with_those_there_are(tmp_path: Path, precision: Any) -> None:
    write_published_folder(tmp_path, with_eos=True, **PUBLISHED)
    with pytest.raises(DeviceError, match="openvino"):
        Encoder.from_pretrained(tmp_path, runtime="openvino", precision=precision)


def test_a_missing_openvino_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_published_folder(tmp_path, with_eos=True, **PUBLISHED)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'drama-models\[openvino\]'"):
        Encoder.from_pretrained(tmp_path, runtime="openvino")


def test_a_folder_that_is_no_llama_is_refused() -> None:
    nano = Path(__file__).parents[2] / "demo" / "nano"
    with pytest.raises(DeviceError, match=r"needs the safetensors of a Llama: a bert is no Llama"):
        Encoder.from_pretrained(nano, runtime="openvino")
