"""int8: outlier channels move into weights without a changed bit, and what loses too much is left out or refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from drama_models import Encoder
from drama_models.errors import PrecisionError
from drama_models.model_folder import weight_files
from drama_models.profile import Profile
from drama_models.runtimes.byte_products import quantised_rows, signed_bytes_are_exact
from drama_models.runtimes.int8 import open_int8
from drama_models.runtimes.int8_conversion import Conversion
from drama_models.runtimes.llama_runtime import LlamaEncoder, read_llama
from drama_models.runtimes.mapped_weights import MappedWeights
from drama_models.sample_texts import SAMPLE_TEXTS
from tests.conftest import TEXTS, make_llama
from tests.drama_models.test_llama_runtime import profile_of, random_texts

MODERATE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
MODERATE |= {"num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 4, "initializer_range": 0.02}
CPU_INFO = Path("/proc/cpuinfo")
OUTLIER_MAKERS = tuple(f"layers.1.{name}.weight" for name in ("input_layernorm", "self_attn.v_proj", "mlp.up_proj"))
OUTLIERS = [7, 101, 233]  # channels
READERS = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DRAMA_THREADS", "1")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def moderate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are as small as a fresh Llama's; wider than the others here, as eight bits need it."""
    return make_llama(tmp_path_factory.mktemp("models") / "moderate", **MODERATE)


def stress(folder: Path, factor: float) -> None:
    """Outlier channels in every norm, and their weights as much smaller: the same function, hard to quantise."""
    state = {name: np.array(value) for name, value in load_file(folder / "model.safetensors").items()}
    for name in state:
        for norm, readers in READERS.items():
            if name.endswith(f"{norm}.weight"):
                state[name][OUTLIERS] *= factor
                for reader in readers:
                    state[name.replace(norm, reader)][:, OUTLIERS] /= factor
    save_file(state, folder / "model.safetensors")


def conversion_of(folder: Path, **profile: Any) -> Conversion:
    shape, weights = read_llama(folder)
    return Conversion(shape, weights, profile_of(hidden_size=shape.hidden_size, **profile), threads=1)


def embed(conversion: Conversion, tensors: Any, quantised: list[str]) -> np.ndarray:
    encoder = LlamaEncoder.built(
        conversion.shape, conversion.weights, tensors, bidirectional=True, threads=1, quantised=quantised
    )
    return np.concatenate([encoder.embed([ids], "mean") for ids in random_texts()])


def smallest_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(axis=1) / lengths).min())


@pytest.mark.parametrize(("factor", "plain_below"), [(30, 0.99), (100, 0.97)])
def test_stressed_weights_keep_their_embeddings_where_plain_int8_loses_them(
    moderate: Path, tmp_path: Path, factor: float, plain_below: float
) -> None:
    folder = make_llama(tmp_path / "stressed", **MODERATE)
    expected = embed(conversion_of(folder), conversion_of(folder).weights, [])
    stress(folder, factor)
    conversion = conversion_of(folder)
    linear = list(conversion.shape.linear_sizes())
    plain = {name: conversion.weights[name] for name in conversion.weights}
    for name in linear:
        plain |= quantised_rows(name, plain.pop(f"{name}.weight"), signed=False)
    assert smallest_cosine(embed(conversion, plain, linear), expected) < plain_below
    tensors, report = conversion.convert(random_texts()[:2], min_cosine=0.995)  # measured on texts it has not seen
    assert report.kept == ()
    assert smallest_cosine(embed(conversion, tensors, linear), expected) >= 0.995


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 6}, {"attention_bias": True, "mlp_bias": True}],
    ids=["grouped-query", "multi-head", "biases"],
)
def test_moving_outliers_changes_no_bit_of_the_embeddings(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_llama(tmp_path / "llama", **changes)
    generator = np.random.default_rng(0)
    state = {name: np.array(value) for name, value in load_file(folder / "model.safetensors").items()}
    for name, value in state.items():
        if value.ndim == 1:  # gains and biases, which are ones and zeros in a fresh model
            value += generator.normal(0, 1, value.shape).astype(np.float32)
        if name.endswith(OUTLIER_MAKERS):
            value[5] *= 100
    save_file(state, folder / "model.safetensors")
    conversion = conversion_of(folder)
    moved, before = conversion.evened_out(random_texts())
    for name in ("input_layernorm", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        assert np.abs(moved[f"layers.1.{name}.weight"] - conversion.weights[f"layers.1.{name}.weight"]).max() > 0.1
    np.testing.assert_array_equal(embed(conversion, moved, []), before)


def test_channels_of_a_model_without_outliers_stay_as_they_are(moderate: Path) -> None:
    conversion = conversion_of(moderate)
    moved, _ = conversion.evened_out(random_texts())
    changed = [(tensor != conversion.weights[name]).mean() for name, tensor in moved.items()]
    assert max(changed) < 0.02  # a channel that hardly anything reads may be moved too


@pytest.mark.parametrize(("signed", "kind", "zero"), [(True, np.int8, 0), (False, np.uint8, 128)])
def test_rows_are_whole_numbers_of_their_scale(signed: bool, kind: type[np.generic], zero: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    weight[3] = 0
    tensors = quantised_rows("layer", weight, signed=signed)
    assert tensors["layer.int8"].dtype == kind
    restored = (tensors["layer.int8"].T.astype(np.float32) - zero) * tensors["layer.scale"][:, None]
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(restored - weight) <= step * 0.501).all()
    assert not restored[3].any()


@pytest.mark.parametrize("signed", [signed_bytes_are_exact(), False], ids=["as chosen here", "unsigned"])
def test_sums_beyond_sixteen_bits_are_exact_on_every_processor(tmp_path: Path, signed: bool) -> None:
    folder = make_llama(tmp_path / "signs", **MODERATE)
    state = {name: np.array(value) for name, value in load_file(folder / "model.safetensors").items()}
    for name, value in state.items():
        if "_proj" in name:  # eight bits hold such weights exactly, and pairs of products are as large as they can be
            state[name] = np.where(value > 0, np.float32(0.02), np.float32(-0.02))
    save_file(state, folder / "model.safetensors")
    conversion = conversion_of(folder)
    linear = list(conversion.shape.linear_sizes())
    tensors = {name: conversion.weights[name] for name in conversion.weights}
    expected = embed(conversion, tensors, [])
    for name in linear:
        tensors |= quantised_rows(name, tensors.pop(f"{name}.weight"), signed=signed)
    assert smallest_cosine(embed(conversion, tensors, linear), expected) > 0.9995  # with sums that overflow: 0.2


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPU_INFO.is_file(), reason="reads the flags of Linux on x86")
def test_signed_bytes_are_found_exact_where_the_processor_has_instructions_for_them() -> None:
    flags = next(line for line in CPU_INFO.read_text(encoding="utf-8").splitlines() if line.startswith("flags")).split()
    assert signed_bytes_are_exact() == bool({"avx512_vnni", "avx_vnni"} & set(flags))


def test_layers_that_lose_too_much_stay_in_float32(moderate: Path) -> None:
    conversion = conversion_of(moderate)
    _, all_int8 = conversion.convert(random_texts(), min_cosine=0.99)
    assert all_int8.kept == ()
    wanted = (1 + all_int8.smallest_cosine) / 2 - 1e-5  # half of the loss
    tensors, report = conversion.convert(random_texts(), min_cosine=wanted)
    assert 1 <= len(report.kept) <= 2
    assert report.smallest_cosine >= wanted
    for layer in range(4):
        assert (f"layers.{layer}.mlp.up_proj.weight" in tensors) == (layer in report.kept)
    vectors = conversion.encoder(tensors).embed(random_texts(), "mean")
    assert smallest_cosine(vectors, embed(conversion, conversion.weights, [])) >= wanted


def test_a_model_that_int8_cannot_hold_is_refused_with_the_figure(moderate: Path) -> None:
    with pytest.raises(PrecisionError, match=r"cosine of 0\.99\d\d on 4 sample texts, with 2 of 4 layers.*'fp32'"):
        conversion_of(moderate).convert(random_texts(), min_cosine=0.99999)


def test_without_a_token_there_is_nothing_to_measure(moderate: Path, cache: Path) -> None:
    nothing = [np.array([], dtype=np.int64)]
    with pytest.raises(PrecisionError, match="None of the sample texts has a token"):
        open_int8(moderate, Profile.from_folder(moderate), lambda _: nothing, [""])


def test_a_text_does_not_depend_on_its_batch_mates_in_int8_either(moderate: Path) -> None:
    conversion = conversion_of(moderate)
    tensors, _ = conversion.convert(random_texts(), min_cosine=0.9)
    encoder = conversion.encoder(tensors)
    alone = np.concatenate([encoder.embed([text], "mean") for text in random_texts()])
    np.testing.assert_allclose(encoder.embed(random_texts(), "mean"), alone, atol=1e-5)


def test_the_texts_that_int8_is_measured_on_are_in_eleven_scripts() -> None:
    letters = {letter for text in SAMPLE_TEXTS for letter in text if letter.isalpha()}
    assert len({unicodedata.name(letter).split()[0] for letter in letters}) == 11


def test_encoder_converts_once_and_says_what_it_measured(moderate: Path, cache: Path) -> None:
    exact = Encoder.from_pretrained(moderate).encode_documents(TEXTS)
    encoder = Encoder.from_pretrained(moderate, precision="int8", sample_texts=TEXTS[:6])
    assert "int8 (smallest cosine 0.99" in encoder.runtime.description
    assert "on 6 texts" in encoder.runtime.description
    (kept,) = cache.iterdir()
    first = encoder.encode_documents(TEXTS)
    assert (first * exact).sum(axis=1).min() > 0.99
    written = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert set(written) == {"graph.onnx", "weights.bin", "report.json"}
    again = Encoder.from_pretrained(moderate, precision="int8", sample_texts=TEXTS[:6])
    np.testing.assert_array_equal(again.encode_documents(TEXTS), first)
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == written
    size = (kept / "weights.bin").stat().st_size  # every byte twice: as it was made, and as it was packed
    assert size < 2 * 0.3 * weight_bytes(moderate)


def weight_bytes(folder: Path) -> int:
    weights = MappedWeights(weight_files(folder))
    return sum(weights[name].nbytes for name in weights if name != "embed_tokens.weight")


def test_a_changed_model_and_a_damaged_cache_are_converted_again(moderate: Path, tmp_path: Path, cache: Path) -> None:
    folder = make_llama(tmp_path / "changing", **MODERATE)
    first = Encoder.from_pretrained(folder, precision="int8").encode_documents(TEXTS[:3])
    (kept,) = cache.iterdir()
    for name in ("graph.onnx", "weights.bin", "report.json"):
        whole = (kept / name).read_bytes()
        middle = len(whole) // 2
        for damaged in (whole[:-5], whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]):
            (kept / name).write_bytes(damaged)
            again = Encoder.from_pretrained(folder, precision="int8").encode_documents(TEXTS[:3])
            np.testing.assert_array_equal(again, first)
            if name != "report.json":
                assert (kept / name).read_bytes() != damaged  # converted again, not used as it was
    make_llama(folder, seed=1, **MODERATE)
    other = Encoder.from_pretrained(folder, precision="int8").encode_documents(TEXTS[:3])
    assert np.abs(other - first).max() > 0.01
    assert len(list(cache.iterdir())) == 2


def test_a_kept_conversion_runs_without_the_package_that_builds_graphs(moderate: Path) -> None:
    expected = Encoder.from_pretrained(moderate, precision="int8").encode_documents(TEXTS[:3])
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from drama_models import Encoder\n"
        f"encoder = Encoder.from_pretrained({str(moderate)!r}, precision='int8')\n"
        f"print(encoder.encode_documents({TEXTS[:3]!r}).tobytes().hex())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert bytes.fromhex(result.stdout.strip()) == expected.tobytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_does_not_stop_anyone(moderate: Path, cache: Path) -> None:
    cache.mkdir(mode=0o500)
    assert Encoder.from_pretrained(moderate, precision="int8").encode_documents(TEXTS[:3]).shape == (3, 256)


def test_a_cache_in_the_way_of_a_file_does_not_stop_anyone(
    moderate: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be", encoding="utf-8")
    assert Encoder.from_pretrained(moderate, precision="int8").encode_documents(TEXTS[:3]).shape == (3, 256)
    assert "made again next time" in caplog.text
