"""One flipped byte in a release: an error that names the file, for every kind of file and every runtime."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from drama_models import Encoder, encoder, integrity
from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_folder, sha256_of_file
from drama_models.provenance import model_files, read_provenance, write_provenance
from drama_models.runtimes.choice import load_runtime
from tests.conftest import make_llama

TEXT = "Put two tables together."
CASES = [
    *((name, runtime) for runtime in ("onnx", "onnx-file", "torch") for name in ("config.json", "model.safetensors")),
    *((name, "onnx") for name in ("tokenizer.json", "modules.json", "1_Pooling/config.json")),
    ("config_sentence_transformers.json", "onnx"),
    ("onnx/model.onnx", "onnx-file"),
]


@pytest.fixture
def release(release_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release_folder, tmp_path / "release"))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "runtime"), CASES)
def test_a_flipped_byte_is_an_error_that_names_the_file(release: Path, name: str, runtime: str) -> None:
    path = release / name
    size = path.stat().st_size
    for position in (12, size // 2, size - 2):  # 12: in the header of safetensors
        flip(path, position)
        with pytest.raises(ModelFolderError, match=rf"{name} is not the file that was written: .*verify=False"):
            Encoder.from_pretrained(release, runtime=runtime)  # type: ignore[arg-type]
        flip(path, position)
    assert len(Encoder.from_pretrained(release, runtime=runtime).encode_queries(TEXT)) == 1  # type: ignore[arg-type]


def test_only_what_is_read_is_compared_and_nothing_where_it_is_switched_off(release: Path) -> None:
    expected = Encoder.from_pretrained(release).encode_queries(TEXT)
    flip(release / "onnx" / "model.onnx", 500)
    np.testing.assert_array_equal(Encoder.from_pretrained(release).encode_queries(TEXT), expected)
    flip(release / "model.safetensors", -2)
    changed = Encoder.from_pretrained(release, verify=False).encode_queries(TEXT)
    assert np.isfinite(changed).all()
    (release / "provenance.json").unlink()  # a folder from elsewhere
    np.testing.assert_array_equal(Encoder.from_pretrained(release).encode_queries(TEXT), changed)


def test_a_folder_that_is_replaced_while_it_is_loaded_gives_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("old", "new")):
        path = make_llama(tmp_path / name, seed=seed) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        numbers = content["model"]["vocab"]
        numbers["a"], numbers["t"] = (numbers["a"], numbers["t"])[:: 1 if name == "old" else -1]
        path.write_text(json.dumps(content), encoding="utf-8")
        write_provenance(tmp_path / name, stage="made", recipe={}, inputs={}, figures={})
    expected = Encoder.from_pretrained(tmp_path / "new", runtime="onnx").encode_documents("a table that tastes")
    replaced = [1]

    def replaced_before_weights_are_read(*arguments: object, **settings: object) -> object:
        if replaced:
            replaced.pop()
            with atomic_folder(tmp_path / "old") as partial:
                shutil.copytree(tmp_path / "new", partial, dirs_exist_ok=True)
        return load_runtime(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "load_runtime", replaced_before_weights_are_read)
    found = Encoder.from_pretrained(tmp_path / "old", runtime="onnx").encode_documents("a table that tastes")
    assert not replaced
    np.testing.assert_array_equal(found, expected)


def test_a_lost_file_and_a_damaged_record_are_said(release: Path) -> None:
    (release / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"1_Pooling/config\.json is missing, and provenance\.json says"):
        Encoder.from_pretrained(release)
    (release / "provenance.json").write_text('{"files": 3}')
    with pytest.raises(ModelFolderError, match=r"provenance\.json is damaged"):
        Encoder.from_pretrained(release)


def test_a_record_names_nothing_outside_its_folder(release: Path) -> None:
    (release.parent / "secret.json").write_text("{}", encoding="utf-8")
    for name in ("../secret.json", str(release.parent / "secret.json")):
        (release / "provenance.json").write_text(json.dumps({"files": {name: "0"}}), encoding="utf-8")
        with pytest.raises(ModelFolderError, match=r"provenance\.json is damaged"):
            Encoder.from_pretrained(release)


def test_the_record_lists_every_model_file_with_its_hash(release_folder: Path) -> None:
    recorded = (read_provenance(release_folder) or {})["files"]
    assert recorded == model_files(release_folder)
    assert {"config.json", "tokenizer.json", "model.safetensors", "onnx/model.onnx"} < set(recorded)
    assert not {"README.md", "provenance.json", "verification.json"} & set(recorded)
    assert recorded["config.json"] == sha256_of_file(release_folder / "config.json")


def test_a_large_files_hash_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "REMEMBERED_BYTES", 10)
    monkeypatch.setattr(integrity, "SETTLED_S", -1.0)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(integrity, "sha256_of_file", counted)
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    first = integrity.known_sha256(path)
    assert integrity.known_sha256(path) == first == sha256_of_file(path)
    assert read == ["weights"]
    times = path.stat()
    path.write_bytes(b"0123456780")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time of the change itself stays later
    assert integrity.known_sha256(path) == sha256_of_file(path) != first
    monkeypatch.setattr(integrity, "SETTLED_S", 3600.0)  # too fresh to be remembered
    path.write_bytes(b"0123456781")
    assert integrity.known_sha256(path) == integrity.known_sha256(path) == sha256_of_file(path)
    assert read == ["weights"] * 4


def test_a_user_without_a_home_has_no_cache_and_loads_all_the_same(
    release_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("DRAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(integrity, "REMEMBERED_BYTES", 0)
    assert Encoder.from_pretrained(release_folder, runtime="onnx").encode_documents(["a"]).shape == (1, 48)
