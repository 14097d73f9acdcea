"""Settings of the wrong kind, in folders without hashes: named before they become a wrong shape or vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from drama_models import Encoder
from drama_models.errors import DramaError, ModelFolderError
from drama_models.model_folder import tensor_shapes, weight_files
from drama_models.profile import Profile

if TYPE_CHECKING:
    from drama_models.runtimes.choice import RuntimeName

TEXTS = ["a sea", "join 3"]
WRONG: list[Any] = [0, -1, 1.5, "x", [], {}, [1], True, 10**30, "../x"]
SETTINGS = {
    "config.json": (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "rms_norm_eps", "vocab_size", "is_causal", "rope_parameters", "matryoshka_dimensions",
        "max_position_embeddings", "architectures", "hidden_act", "auto_map",
    ),
    "tokenizer_config.json": ("model_max_length", "bos_token", "eos_token"),
    "sentence_bert_config.json": ("max_seq_length",),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "truncate_dim"),
    "1_Pooling/config.json": ("pooling_mode", "include_prompt"),
}  # fmt: skip


@pytest.fixture
def folder(release_folder: Path, tmp_path: Path) -> Path:
    """A copy of the release without hashes, as from elsewhere."""
    ignored = shutil.ignore_patterns("provenance.json")
    return Path(shutil.copytree(release_folder, tmp_path / "release", ignore=ignored))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


@pytest.mark.parametrize(("name", "setting"), [(name, one) for name, known in SETTINGS.items() for one in known])
def test_any_value_of_a_setting_gives_finite_vectors_or_a_sentence_that_names_the_file(
    folder: Path, name: str, setting: str
) -> None:
    before = (folder / name).read_bytes()
    sentences = []
    for value in WRONG:
        change(folder / name, **{setting: value})
        try:
            assert np.isfinite(Encoder.from_pretrained(folder, runtime="onnx").encode_documents(TEXTS)).all()
        except DramaError as error:
            sentences.append(str(error))
        (folder / name).write_bytes(before)
    assert len(sentences) >= 5
    assert [one for one in sentences if (folder / name).name not in one and "model.safetensors" not in one] == []


@pytest.mark.parametrize("runtime", ["torch", "onnx", "openvino"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": None}, r"config\.json has no usable num_attention_heads"),
        ({"num_key_value_heads": 4}, "num_attention_heads=6 is no multiple of num_key_value_heads=4"),
        ({"head_dim": None, "num_attention_heads": 9, "num_key_value_heads": 3}, "multiple of num_attention_heads=9"),
        ({"head_dim": 7}, "heads of 7 numbers cannot be rotated"),
        ({"rms_norm_eps": None}, "rms_norm_eps is 'None' and must be a number between 0 and 1"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, r"config\.json has no usable factor"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000' and must be a whole number from 1 to 10000"),
    ],
)
def test_sizes_that_no_llama_has_are_named_in_every_runtime(
    folder: Path, runtime: RuntimeName, changes: dict[str, Any], message: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    change(folder / "config.json", **changes)
    with pytest.raises(ModelFolderError, match=message):
        Encoder.from_pretrained(folder, runtime=runtime)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' + b"9" * 6000 + b"}", b'{"a": "\xff"}', b"null"])
@pytest.mark.parametrize("name", ["config.json", "modules.json", "provenance.json"])
def test_what_json_cannot_hold_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=name):
        Encoder.from_pretrained(folder)


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "a/../../b", "..\\other"])
def test_a_part_outside_the_folder_is_refused(folder: Path, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="names a part outside the folder"):
        Encoder.from_pretrained(folder)


def test_a_panic_of_the_tokenizer_is_a_sentence(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["continuing_subword_prefix"] = "longer than a token"  # the library slices beyond the end
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json is not a tokenizer file"):
        Encoder.from_pretrained(folder)


def rewrite_header(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": 32, "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "X32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        3,
    ],
)
def test_a_header_that_leaves_room_or_has_no_sense_is_named(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "model.safetensors"
    good = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    rewrite_header(path, {"a": entry, "b": good}, bytes(16))
    with pytest.raises(ModelFolderError, match=r"model\.safetensors has a damaged safetensors header"):
        tensor_shapes(path)


def test_a_single_file_goes_before_shards_as_in_transformers(folder: Path) -> None:
    change_to = {"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(change_to), encoding="utf-8")
    assert weight_files(folder) == [folder / "model.safetensors"]
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert weight_files(folder) == [folder / "model-00001-of-00001.safetensors"]
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"index\.json names no file"):
        weight_files(folder)


def test_a_null_stands_for_a_setting_that_is_absent(folder: Path) -> None:
    before = Profile.from_folder(folder)
    for name, settings in (
        ("config.json", ("pad_token_id", "head_dim", "matryoshka_dimensions", "is_matryoshka")),
        ("config_sentence_transformers.json", ("title_separator", "default_prompt_name")),
        ("tokenizer_config.json", ("add_eos_token", "sep_token")),
    ):
        path = folder / name
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(stored | {key: stored.get(key) for key in settings}), encoding="utf-8")
    assert Profile.from_folder(folder) == before
