"""ONNX Runtime straight from safetensors, against transformers' own Llama on each text alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from drama_models import Encoder, Profile
from drama_models.errors import ModelFolderError
from drama_models.model_folder import weight_files
from drama_models.pooling import pool
from drama_models.runtimes.llama_runtime import LlamaOnnxRuntime
from drama_models.runtimes.mapped_weights import MappedWeights
from drama_models.runtimes.onnx_runtime import OnnxRuntime
from drama_models.runtimes.onnx_session import chosen_threads
from tests.conftest import TEXTS, make_llama
from tests.drama_models.published import write_published_folder

if TYPE_CHECKING:
    from drama_models.runtimes import Runtime

LLAMA3: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "multi-head": {"num_key_value_heads": 6},
    "one key-value head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama 3 positions": {"rope_parameters": LLAMA3},
}
LENGTHS = (9, 1, 40, 5)
PROCESS_STATUS = Path("/proc/self/status")
PART_VALUES = 2**18  # a MiB of float32
PUBLISHED = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
PUBLISHED |= {"head_dim": 16, "intermediate_size": 96, "vocab_size": 400}


def profile_of(**changes: Any) -> Profile:
    settings: dict[str, Any] = {"hidden_size": 48, "bidirectional": True, "pooling": "mean", "query_prompt": ""}
    settings |= {"document_prompt": "", "set_ends": False, "max_length": 64, "normalise": True, "dims": ()}
    return Profile(**(settings | changes))


def random_texts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 300, length) for length in LENGTHS]


def expected(folder: Path, texts: list[np.ndarray], profile: Profile) -> np.ndarray:
    """The stock Llama, each text alone, what its tokens see given by hand."""
    model = LlamaModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    rows = []
    for text in texts:
        blocked = torch.full((len(text), len(text)), float("-inf")).triu(1)
        mask = (torch.zeros_like(blocked) if profile.bidirectional else blocked)[None, None]
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(text)[None], attention_mask=mask).last_hidden_state.numpy()
        rows.append(pool(states, np.ones((1, len(text)), dtype=np.int64), profile.pooling)[0])
    return np.stack(rows)


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
        vectors = LlamaOnnxRuntime.from_folder(folder, profile, threads=1).embed(random_texts())
        assert vectors.dtype == np.float32
        # float32 in another order of summation
        np.testing.assert_allclose(vectors, expected(folder, random_texts(), profile), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_llama(tmp_path)
    state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    weights = MappedWeights(weight_files(folder))
    for name in ("embed_tokens.weight", "layers.1.mlp.up_proj.weight"):
        np.testing.assert_array_equal(weights[name], state[f"model.{name}"].float().numpy())
    numbers = np.array([7, 0, 7])
    rows = state["model.embed_tokens.weight"].float().numpy()[numbers]
    np.testing.assert_array_equal(weights.rows("embed_tokens.weight", numbers), rows)
    vectors = LlamaOnnxRuntime.from_folder(folder, profile_of(), threads=1).embed(random_texts())
    np.testing.assert_allclose(vectors, expected(folder, random_texts(), profile_of()), atol=2e-5)


def test_float32_weights_are_views_of_the_file(llama_folder: Path) -> None:
    weights = MappedWeights(weight_files(llama_folder))
    array = weights["layers.0.mlp.up_proj.weight"]
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert "lm_head.weight" not in weights


@pytest.mark.skipif(not PROCESS_STATUS.is_file(), reason="reads the memory of a process from Linux")
def test_weights_that_are_copied_elsewhere_are_not_held_twice(tmp_path: Path) -> None:
    parts = {f"part_{number}": np.full(PART_VALUES, number, dtype=np.float32) for number in range(64)}
    save_arrays(parts, tmp_path / "model.safetensors")  # 64 MiB
    weights, before = MappedWeights([tmp_path / "model.safetensors"]), mapped_mib()
    held = []
    with weights.passing_through():
        for number in range(64):
            assert weights[f"part_{number}"].sum() == number * PART_VALUES
            time.sleep(0.002)  # as if it were packed
            held.append(mapped_mib() - before)
    assert max(held) < 40  # all pages that were read would be 64
    assert mapped_mib() - before < 4
    assert weights["part_7"][-1] == 7  # it is still the file's


def mapped_mib() -> float:
    """Pages of files that this process holds."""
    line = next(line for line in PROCESS_STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1024


def test_an_unknown_number_format_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "copy")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].double()
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"'model\.norm\.weight' is F64; supported are F32, F16, BF16"):
        MappedWeights(weight_files(folder))


def test_a_text_does_not_depend_on_its_batch_mates(llama_folder: Path) -> None:
    runtime = LlamaOnnxRuntime.from_folder(llama_folder, profile_of(), threads=1)
    together = runtime.embed(random_texts())
    alone = np.concatenate([runtime.embed([text]) for text in random_texts()])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("graph_file", [False, True], ids=["safetensors", "graph file"])
def test_a_text_without_tokens_gives_zeros_and_disturbs_nobody(release_folder: Path, graph_file: bool) -> None:
    runtime: Runtime = LlamaOnnxRuntime.from_folder(release_folder, profile_of(), threads=1)
    if graph_file:
        runtime = OnnxRuntime(release_folder, profile_of(), threads=1)
    empty, (first, second, *_) = np.empty(0, dtype=np.int64), random_texts()
    vectors = runtime.embed([empty, first, empty, second])
    np.testing.assert_array_equal(vectors[[0, 2]], 0)
    np.testing.assert_allclose(vectors[[1, 3]], runtime.embed([first, second]), atol=1e-6)
    assert not runtime.embed([empty]).any()


def test_calls_from_many_threads_give_each_its_own_vectors(llama_folder: Path) -> None:
    runtime = LlamaOnnxRuntime.from_folder(llama_folder, profile_of(), threads=2)
    generator = np.random.default_rng(1)
    batches = [[generator.integers(0, 300, length) for length in generator.integers(1, 60, 5)] for _ in range(40)]
    with ThreadPoolExecutor(8) as pool_of_threads:
        at_once = list(pool_of_threads.map(runtime.embed, batches))
    for vectors, batch in zip(at_once, batches, strict=True):
        np.testing.assert_allclose(vectors, runtime.embed(batch), atol=1e-6)


@pytest.mark.parametrize("with_eos", [True, False], ids=["newer tokenizer", "first tokenizer"])
def test_a_published_folder_is_encoded_as_torch_does(tmp_path: Path, with_eos: bool) -> None:
    folder = write_published_folder(tmp_path, with_eos=with_eos, **PUBLISHED)
    ours, theirs = (Encoder.from_pretrained(folder, runtime=name) for name in ("onnx", "torch"))
    np.testing.assert_allclose(ours.encode_queries(TEXTS[:8]), theirs.encode_queries(TEXTS[:8]), atol=1e-5)
    np.testing.assert_allclose(ours.encode_documents(TEXTS[:8]), theirs.encode_documents(TEXTS[:8]), atol=1e-5)
    assert not (folder / "REMOTE_CODE_RAN").exists()


def test_shards_are_read_as_one(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "sharded")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    whole, sharded = (LlamaOnnxRuntime.from_folder(path, profile_of(), threads=1) for path in (llama_folder, folder))
    np.testing.assert_array_equal(sharded.embed(random_texts()), whole.embed(random_texts()))


def test_threads_come_from_the_argument_then_the_environment_then_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAMA_THREADS", raising=False)
    assert chosen_threads() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("DRAMA_THREADS", "3")
    assert chosen_threads() == 3
    assert chosen_threads(5) == 5
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="whole number above 0"):
            chosen_threads(wrong)
    monkeypatch.setenv("DRAMA_THREADS", "many")
    with pytest.raises(ValueError, match="DRAMA_THREADS='many'"):
        chosen_threads()
