"""What callers may not ask for: one sentence each, the same whichever runtime would have computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from drama_models import Encoder
from drama_models.errors import DeviceError, DimensionError, LengthError, PrecisionError, TextError
from drama_models.model_folder import tensor_shapes
from tests.conftest import make_tokenizer


@pytest.mark.parametrize("length", [0, 1, 2, -1, True, 1.5, "8", 10**30])
def test_a_length_without_room_for_a_text_is_refused(release_folder: Path, length: Any) -> None:
    with pytest.raises(LengthError, match="whole number above 2, the tokens that are put around every text"):
        Encoder.from_pretrained(release_folder, max_length=length)


def test_the_shortest_length_keeps_one_token(release_folder: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder, max_length=3)
    with pytest.warns(UserWarning, match="2 texts were longer"):
        first, second = encoder.encode_documents(["a sea", "a ship"])
    np.testing.assert_array_equal(first, second)
    assert encoder.max_length == 3


def test_no_text_goes_beyond_the_positions_that_a_model_has(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes)  # type: ignore[arg-type]
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tensor_shapes(tmp_path / "model.safetensors")["embeddings.position_embeddings.weight"] == (12, 16)
    with pytest.warns(UserWarning, match="1 texts were longer"):
        assert np.isfinite(Encoder.from_pretrained(tmp_path, max_length=12).encode_documents("word " * 99)).all()
    with pytest.raises(LengthError, match="beyond the 12 positions"):
        Encoder.from_pretrained(tmp_path, max_length=13)


@pytest.mark.parametrize("dim", [0, -1, 49, 1.0, True, "16"])
def test_sizes_that_are_none_are_refused_early_and_late(release_folder: Path, dim: Any) -> None:
    with pytest.raises(DimensionError, match="must be a whole number between 1 and 48"):
        Encoder.from_pretrained(release_folder, dim=dim)
    with pytest.raises(DimensionError, match="must be a whole number between 1 and 48"):
        Encoder.from_pretrained(release_folder).encode_queries("x", dim=dim)


@pytest.mark.parametrize("texts", [None, 5, b"x", bytearray(b"x"), 1.5])
def test_what_is_no_text_and_no_iterable_is_a_type_error(release_folder: Path, texts: Any) -> None:
    with pytest.raises(TextError, match=f"found {type(texts).__name__}; pass strings only"):
        Encoder.from_pretrained(release_folder).encode_documents(texts)


def test_unknown_choices_and_empty_samples_are_named(release_folder: Path) -> None:
    with pytest.raises(DeviceError, match="runtime='tensorflow' must be one of auto, torch, onnx"):
        Encoder.from_pretrained(release_folder, runtime="tensorflow")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="precision='int4' must be one of auto, fp32"):
        Encoder.from_pretrained(release_folder, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(PrecisionError, match="sample_texts is empty"):
        Encoder.from_pretrained(release_folder, precision="int8", sample_texts=[])
    with pytest.raises(TextError, match="Text number 1 is NoneType"):
        Encoder.from_pretrained(release_folder, precision="int8", sample_texts=["a", None])  # type: ignore[list-item]
