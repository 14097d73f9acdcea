"""The torch runtime against the stock model in sentence-transformers, for every kind of backbone it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    XLMRobertaConfig,
)

from drama_models.errors import DeviceError, ModelFolderError
from drama_models.profile import Profile
from drama_models.rotary import inverse_frequencies
from drama_models.runtimes import linear
from drama_models.runtimes.linear import PrepackedLinear, can_prepack
from drama_models.runtimes.packed_llama import is_llama_shaped
from drama_models.runtimes.torch_runtime import TorchRuntime
from tests.conftest import TEXTS, make_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "vocab_size": len(make_tokenizer()),
}
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
BOTH_WAYS: dict[str, Any] = GROUPED | {"is_causal": False}
KINDS: dict[str, tuple[PreTrainedConfig, str]] = {
    "drama": (LlamaConfig(**BOTH_WAYS, rope_parameters=LLAMA3), "mean"),
    "causal llama, last token": (LlamaConfig(**GROUPED), "lasttoken"),
    "llama with biases": (LlamaConfig(**BOTH_WAYS, attention_bias=True, mlp_bias=True), "mean"),
    "llama with yarn": (LlamaConfig(**BOTH_WAYS, rope_parameters={"rope_type": "yarn", "factor": 4.0}), "mean"),
    "mistral, last token": (MistralConfig(**GROUPED, sliding_window=6), "lasttoken"),
    "bidirectional mistral": (MistralConfig(**BOTH_WAYS, sliding_window=6), "mean"),
    "qwen2, last token": (Qwen2Config(**{k: v for k, v in GROUPED.items() if k != "head_dim"}), "lasttoken"),
    "gemma2, last token": (Gemma2Config(**GROUPED, attn_logit_softcapping=2.0, sliding_window=6), "lasttoken"),
    "bidirectional gemma3": (
        Gemma3TextConfig(**GROUPED, sliding_window=12, use_bidirectional_attention=True),
        "mean",
    ),
    "modernbert": (ModernBertConfig(**SIZES, local_attention=12), "mean"),
    "gpt2, last token": (GPT2Config(**SIZES), "lasttoken"),
    "distilbert": (DistilBertConfig(**SIZES | {"hidden_dim": 48}), "mean"),
    "causal bert": (BertConfig(**SIZES, is_decoder=True), "mean"),
    "bert, first token": (BertConfig(**SIZES), "cls"),
    "xlm-roberta": (XLMRobertaConfig(**SIZES), "mean"),
}
LEAN = (
    "drama", "causal llama, last token", "llama with biases", "mistral, last token", "bidirectional mistral",
    "qwen2, last token",
)  # fmt: skip
SOME = [*TEXTS[:9], "x", TEXTS[0] * 12]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """sentence-transformers folders of the true classes with random weights, gains and biases."""
    root, made = tmp_path_factory.mktemp("kinds"), {}
    for number, (kind, (config, pooling)) in enumerate(KINDS.items()):
        torch.manual_seed(number)
        backbone = AutoModel.from_config(config)
        with torch.no_grad():
            for weight in backbone.parameters():
                if weight.ndim == 1:
                    weight.add_(torch.randn_like(weight), alpha=0.1)
        backbone.save_pretrained(root / f"backbone {number}")
        make_tokenizer().save_pretrained(root / f"backbone {number}")
        transformer = Transformer(str(root / f"backbone {number}"), max_seq_length=512)
        model = SentenceTransformer(modules=[transformer, Pooling(32, pooling)], device="cpu")
        model.save_pretrained(str(root / f"model {number}"), create_model_card=False)
        made[kind] = root / f"model {number}"
    return made


def token_ids(folder: Path, texts: list[str]) -> list[NDArray[np.int64]]:
    encoded = SentenceTransformer(str(folder), device="cpu").tokenizer(texts, truncation=True, max_length=512)
    return [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]


def runtime(folder: Path, **settings: Any) -> TorchRuntime:
    return TorchRuntime(folder, Profile.from_folder(folder), "cpu", **settings)


@pytest.mark.parametrize("kind", list(KINDS))
def test_vectors_are_those_of_sentence_transformers(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    stock = SentenceTransformer(str(folder), device="cpu")
    ids, ours = token_ids(folder, SOME), runtime(folder)
    found, expected = ours.embed(ids), stock.encode(SOME, batch_size=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()), rtol=1e-4)
    assert ours.packed
    assert is_llama_shaped(json.loads((folder / "config.json").read_text())) == (kind in LEAN)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_row_does_not_depend_on_its_batch_mates(kind: str, folders: dict[str, Path]) -> None:
    ids, ours = token_ids(folders[kind], SOME), runtime(folders[kind])
    alone = np.concatenate([ours.embed([row]) for row in ids])
    np.testing.assert_allclose(ours.embed(ids), alone, atol=2e-5 * float(np.abs(alone).max()), rtol=1e-4)
    assert ours.embed([]).shape == (0, 32)


def test_a_backbone_that_cannot_be_packed_is_padded(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from drama_models.runtimes import stock_backend

    ids = token_ids(folders["bert, first token"], SOME)
    packed = runtime(folders["bert, first token"])
    monkeypatch.setattr(stock_backend, "enable_packing", lambda _: False)
    padded = runtime(folders["bert, first token"])
    assert (packed.packed, padded.packed) == (True, False)
    np.testing.assert_allclose(padded.embed(ids), packed.embed(ids), atol=1e-5)


@pytest.mark.parametrize("kind", ["drama", "bert, first token"])
def test_calls_from_many_threads_give_what_one_gives(kind: str, folders: dict[str, Path]) -> None:
    ids, ours = token_ids(folders[kind], SOME * 4), runtime(folders[kind])
    alone = [ours.embed(ids[start : start + 3]) for start in range(0, len(ids), 3)]
    again = runtime(folders[kind])  # nothing warmed up: tables grow while others read them
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda start: again.embed(ids[start : start + 3]), range(0, len(ids), 3)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_a_text_without_tokens_is_the_zero_vector_and_disturbs_nobody(folders: dict[str, Path]) -> None:
    ids, empty = token_ids(folders["drama"], SOME[:2]), np.empty(0, dtype=np.int64)
    ours = runtime(folders["drama"])
    found = ours.embed([ids[0], empty, ids[1]])
    np.testing.assert_array_equal(found[1], np.zeros(32))
    np.testing.assert_allclose(found[[0, 2]], ours.embed(ids), atol=1e-6)
    np.testing.assert_array_equal(ours.embed([empty]), np.zeros((1, 32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_prepacked_products_are_plain_products(dtype: torch.dtype, rows: int) -> None:
    weight, bias, states = torch.randn(40, 24), torch.randn(40), torch.randn(rows, 24)
    layer = PrepackedLinear(weight.to(dtype), bias.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 0.2  # eight bits of mantissa
    found = layer(states.to(dtype)).float()
    torch.testing.assert_close(found, states @ weight.T + bias, atol=tolerance, rtol=tolerance)
    assert layer.prepacked == can_prepack(dtype)


def test_without_the_private_operators_vectors_stay(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ids, with_them = token_ids(folders["drama"], SOME), runtime(folders["drama"])

    def gone(*_: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "_prepack", gone)
    can_prepack.cache_clear()
    without = runtime(folders["drama"])
    can_prepack.cache_clear()
    np.testing.assert_allclose(without.embed(ids), with_them.embed(ids), atol=1e-5)


def test_an_operator_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_prepack", lambda weight: weight)
    monkeypatch.setattr(linear, "_product", lambda states, weight, bias: F.linear(states, weight, bias) + 0.01)
    can_prepack.cache_clear()
    assert not can_prepack(torch.float32)
    can_prepack.cache_clear()


def test_bfloat16_stays_near_float32(folders: dict[str, Path], recwarn: pytest.WarningsRecorder) -> None:
    ids = token_ids(folders["drama"], SOME)
    exact, rounded = runtime(folders["drama"]).embed(ids), runtime(folders["drama"], dtype="bfloat16").embed(ids)
    cosines = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > 0.999
    assert rounded.dtype == np.float32


def test_weights_may_be_sharded_or_stored_in_bfloat16(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, shards = folders["drama"], tmp_path / "shards"
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(shards, max_shard_size="20kB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    profile, ids = Profile.from_folder(folder), token_ids(folder, SOME)
    np.testing.assert_array_equal(TorchRuntime(shards, profile, "cpu").embed(ids), runtime(folder).embed(ids))
    half = tmp_path / "half"
    model.bfloat16().save_pretrained(half)
    whole = tmp_path / "whole"
    model.float().save_pretrained(whole)
    found, expected = (TorchRuntime(place, profile, "cpu").embed(ids) for place in (half, whole))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(folders: dict[str, Path]) -> None:
    """The compiler is optional, so without one on this machine there is nothing to compare."""
    ids, plain = token_ids(folders["drama"], SOME), runtime(folders["drama"])
    compiled = runtime(folders["drama"], compile=True)
    try:
        found = compiled.embed(ids)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no compiler: {error}")
    np.testing.assert_allclose(found, plain.embed(ids), atol=1e-5)
    np.testing.assert_allclose(compiled.embed(ids[:1]), plain.embed(ids[:1]), atol=1e-5)


@pytest.mark.parametrize("kind", ["drama", "llama with yarn", "mistral, last token"])
def test_frequencies_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    config = json.loads((folders[kind] / "config.json").read_text())
    if kind == "llama with yarn":
        with pytest.raises(ValueError, match="'yarn' is not built here; supported are default and llama3"):
            inverse_frequencies(config, 8)
        return
    wanted = AutoModel.from_config(AutoConfig.from_pretrained(folders[kind])).rotary_emb.inv_freq
    np.testing.assert_allclose(inverse_frequencies(config, 8), wanted.numpy(), rtol=1e-6)


def test_a_llama_is_read_without_transformers(folders: dict[str, Path]) -> None:
    """It would cost more time at the start than everything else together."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from drama_models.profile import Profile\n"
        "from drama_models.runtimes.torch_runtime import TorchRuntime\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print(TorchRuntime(folder, Profile.from_folder(folder), 'cpu').embed([np.array([0, 5, 1])]).shape)\n"
        "print('transformers' in sys.modules)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(folders["drama"])], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split("\n")[:2] == ["(1, 32)", "False"]


def test_a_tensor_of_the_wrong_shape_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    AutoModel.from_pretrained(folders["drama"]).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.self_attn.k_proj.weight"))
    save_file(weights | {name: weights[name][:3].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"tensor 'layers.1.self_attn.k_proj.weight' has shape"):
        TorchRuntime(folder, Profile.from_folder(folders["drama"]), "cpu")


def test_devices_and_formats_that_are_not_there_are_refused(folders: dict[str, Path]) -> None:
    profile = Profile.from_folder(folders["drama"])
    with pytest.raises(DeviceError, match=r"computes in float32, bfloat16, float16, not in 'int8'; runtime='onnx'"):
        TorchRuntime(folders["drama"], profile, "cpu", "int8")
    with pytest.raises(DeviceError, match="device='gpu' cannot be used"):
        TorchRuntime(folders["drama"], profile, "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"device='cuda' is not available here; use .*cpu"):
            TorchRuntime(folders["drama"], profile, "cuda")
        assert TorchRuntime(folders["drama"], profile).device in ("cpu", "mps")


def test_a_device_that_fails_is_passed_over(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that claims a device which lacks an operator: the meta device cannot compute values."""
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ours = TorchRuntime(folders["drama"], Profile.from_folder(folders["drama"]))
    if ours.device == "mps":
        pytest.skip("this machine has MPS")
    assert ours.device == "cpu"
    assert "does not run on mps" in caplog.text
    assert ours.embed([np.array([0, 5, 1])]).shape == (1, 32)
