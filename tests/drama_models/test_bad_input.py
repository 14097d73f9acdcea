"""The design's table of bad input, case by case: one clear sentence, the same in every runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from drama_models import Encoder, Profile
from drama_models.errors import AttentionDirectionError, DramaError, ModelFolderError, TextError
from drama_models.tokenisation import checked_text

if TYPE_CHECKING:
    from drama_models.runtimes.choice import RuntimeName


@pytest.fixture(params=["torch", "onnx"])
def encoder(request: pytest.FixtureRequest, release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder, runtime=request.param)


@pytest.fixture
def folder(release_folder: Path, tmp_path: Path) -> Path:
    """A copy of the release that a test may damage, without the hashes by which any change would be found."""
    ignored = shutil.ignore_patterns("provenance.json")
    return Path(shutil.copytree(release_folder, tmp_path / "release", ignore=ignored))


def test_empty_list_gives_an_empty_array(encoder: Encoder) -> None:
    given: list[Iterable[str]] = [[], (), iter([])]
    for texts in given:
        found = encoder.encode_documents(texts)
        assert found.shape == (0, 48)
        assert found.dtype == np.float32


def test_empty_and_blank_texts_are_texts_as_in_sentence_transformers(encoder: Encoder, release_folder: Path) -> None:
    texts = ["", " ", "\n\t"]
    found = encoder.encode_documents(texts)
    assert np.isfinite(found).all()
    stock = SentenceTransformer(str(release_folder), device="cpu")
    # sentence-transformers strips its inputs, so blank texts are the empty text there
    np.testing.assert_allclose(found[:1], stock.encode([""], prompt=""), atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "Text number 1 is NoneType"),
        ([3.5], "Text number 0 is float"),
        (["a", "b", b"bytes"], "Text number 2 is bytes"),
        ([["nested"]], "Text number 0 is list"),
    ],
)
def test_what_is_not_text_is_a_type_error_that_names_the_position(
    encoder: Encoder, texts: list[object], message: str
) -> None:
    with pytest.raises(TextError, match=message) as caught:
        encoder.encode_queries(texts)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)


def test_surrogates_nul_and_huge_lines_do_not_crash(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match="1 texts were longer"):
        found = encoder.encode_documents(["\ud800 lone", "nul \x00 inside", "x" * 10_000_000])
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(encoder.encode_documents("\ud800 lone"), encoder.encode_documents("\ufffd lone"))


def test_surrogate_pairs_become_their_character() -> None:
    assert checked_text("\ud83d\ude80", 0) == "🚀"
    assert checked_text("\udfff", 0) == "\ufffd"
    assert checked_text("plain", 0) == "plain"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=name):
        Encoder.from_pretrained(folder, runtime="torch")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"])
def test_a_file_of_garbage_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{ not json", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=name.rpartition("/")[2]):
        Encoder.from_pretrained(folder, runtime="torch")


@pytest.mark.parametrize("kept", [0, 7, 100, -1000])
def test_truncated_weights_are_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        Encoder.from_pretrained(folder, runtime="torch")


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 81}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"mlp.*has shape \(80, 48\) where config.json asks for \(81, 48\)"):
        Encoder.from_pretrained(folder, runtime="torch")


def test_weights_of_fewer_layers_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"no tensor 'layers\.3"):
        Encoder.from_pretrained(folder, runtime="torch")


@pytest.mark.parametrize("runtime", ["torch", "onnx", "onnx-file"])
def test_a_tokenizer_of_a_larger_model_is_named(folder: Path, runtime: RuntimeName) -> None:
    before = Encoder.from_pretrained(folder, runtime=runtime).encode_documents(["a sea"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["walrus"])
    tokenizer.save(str(folder / "tokenizer.json"))
    encoder = Encoder.from_pretrained(folder, runtime=runtime)
    with pytest.raises(ModelFolderError, match=r"gives 'walrus' the number (\d+), and its embedding has \1 rows"):
        encoder.encode_queries(["a sea", "a walrus"])
    np.testing.assert_array_equal(encoder.encode_documents(["a sea"]), before)


def test_pickle_weights_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match="never loaded"):
        Encoder.from_pretrained(folder, runtime="torch")


def test_a_damaged_graph_is_named(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match=r"model\.onnx cannot be read"):
        Encoder.from_pretrained(folder, runtime="onnx-file")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="model-00001-of-00002"):
        Encoder.from_pretrained(folder, runtime="torch")


def test_a_shard_name_cannot_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"elsewhere\.safetensors is missing"):
        Encoder.from_pretrained(folder, runtime="torch")


def test_unknown_remote_code_is_refused_unless_the_folder_states_its_direction(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("is_causal", "use_bidirectional_attention"):
        config.pop(key)
    config |= {"architectures": ["OtherModel"], "auto_map": {"AutoModel": "modeling_other.OtherModel"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AttentionDirectionError, match="never run"):
        Profile.from_folder(folder)
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": True}), encoding="utf-8")
    assert not Profile.from_folder(folder).bidirectional


def test_unsupported_pooling_is_refused(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode": ["mean", "max"]}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="supported are mean"):
        Profile.from_folder(folder)


def test_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (tmp_path / "absent", "no spaces allowed"):
        with pytest.raises(ModelFolderError, match="not a folder here and could not be fetched"):
            Encoder.from_pretrained(name)


def test_every_error_of_ours_is_one_kind() -> None:
    kinds = [ModelFolderError, AttentionDirectionError, TextError]
    assert all(issubclass(kind, DramaError) for kind in kinds)
    assert issubclass(ModelFolderError, ValueError)
