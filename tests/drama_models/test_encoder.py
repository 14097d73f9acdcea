"""Encoder: order, streaming, dimensions, batch independence; both runtimes against each other and against the class."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from drama_models import DramaModel, Encoder
from drama_models import encoder as encoder_module
from drama_models.errors import DimensionError, MissingExtraError, ModelFolderError
from tests.conftest import TEXTS

RUNTIMES = ["torch", "onnx"]


@pytest.fixture(params=RUNTIMES)
def encoder(request: pytest.FixtureRequest, release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder, runtime=request.param)


def test_matches_the_model_class(encoder: Encoder, release_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(release_folder)
    model = DramaModel.from_pretrained(release_folder).eval()
    for ours, theirs in (
        (encoder.encode_queries(TEXTS[:9]), model.encode_queries(tokenizer, TEXTS[:9])),
        (encoder.encode_documents(TEXTS[:9]), model.encode_documents(tokenizer, TEXTS[:9])),
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_rows_come_back_in_input_order_whatever_their_length(encoder: Encoder) -> None:
    texts = [text * (1 + number % 5) for number, text in enumerate(TEXTS)]
    together = encoder.encode_documents(texts)
    alone = np.concatenate([encoder.encode_documents(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_any_iterable_streams_in_windows(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW_TEXTS", 8)
    read: list[int] = []

    def documents() -> Iterator[str]:
        for number, text in enumerate(TEXTS[:20]):
            read.append(number)
            yield text

    stream = encoder.stream_documents(documents())
    first = next(stream)
    assert first.shape == (8, 48)
    assert len(read) == 8  # nothing is read ahead
    rest = np.concatenate([first, *stream])
    np.testing.assert_array_equal(rest, encoder.encode_documents(TEXTS[:20]))


def test_a_shorter_vector_is_the_prefix_scaled_to_length_one(encoder: Encoder, release_folder: Path) -> None:
    full = encoder.encode_documents(TEXTS[:5])
    expected = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS[:5], dim=16), expected, atol=1e-6)
    small = Encoder.from_pretrained(release_folder, dim=16)
    np.testing.assert_allclose(small.encode_documents(TEXTS[:5]), expected, atol=1e-5)
    assert small.encode_queries([]).shape == (0, 16)


def test_sizes_that_were_not_trained_warn_and_impossible_ones_are_refused(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"dim=20 was not trained.*Trained sizes: 48, 16"):
        assert encoder.encode_documents(["text"], dim=20).shape == (1, 20)
    for dim in (0, -1, 49):
        with pytest.raises(DimensionError, match="between 1 and 48; trained sizes: 48, 16"):
            encoder.encode_documents(["text"], dim=dim)


def test_queries_have_the_prompt_and_documents_have_none(encoder: Encoder) -> None:
    as_query = encoder.encode_queries(["split a string"])
    np.testing.assert_allclose(as_query, encoder.encode_documents(["Query: split a string"]), atol=1e-6)
    assert np.abs(as_query - encoder.encode_documents(["split a string"])).max() > 1e-3


def test_max_length_cuts_and_says_so_once(release_folder: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder, max_length=6)
    long = "one two three four five six seven eight"
    with pytest.warns(UserWarning, match="3 texts were longer") as caught:
        cut = encoder.encode_documents([long, long + " nine", "short", long])
    assert len(caught) == 1
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


def test_auto_takes_onnx_where_there_is_a_graph_and_torch_elsewhere(
    release_folder: Path, retriever_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Encoder.from_pretrained(release_folder).runtime.name == "onnx"
    assert Encoder.from_pretrained(release_folder, dtype="bfloat16").runtime.name == "torch"
    assert Encoder.from_pretrained(retriever_folder).runtime.name == "torch"
    monkeypatch.setattr(encoder_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'drama-models\[torch\]'"):
        Encoder.from_pretrained(retriever_folder)


def test_onnx_without_a_graph_names_the_command(retriever_folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="python -m export release"):
        Encoder.from_pretrained(retriever_folder, runtime="onnx")


def test_fingerprint_depends_on_the_weights_and_not_on_the_runtime(release_folder: Path, tmp_path: Path) -> None:
    marks = {Encoder.from_pretrained(release_folder, runtime=name).fingerprint() for name in ("torch", "onnx")}
    assert len(marks) == 1
    shutil.copytree(release_folder, tmp_path / "copy")
    assert Encoder.from_pretrained(tmp_path / "copy").fingerprint() in marks
    data = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(data)
    assert Encoder.from_pretrained(tmp_path / "copy").fingerprint() not in marks


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=4))
def test_arbitrary_unicode_gives_the_same_finite_vectors_in_both_runtimes(
    both: tuple[Encoder, Encoder], texts: list[str]
) -> None:
    first, second = (encoder.encode_documents(texts) for encoder in both)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.fixture(scope="module")
def both(release_folder: Path) -> tuple[Encoder, Encoder]:
    return (
        Encoder.from_pretrained(release_folder, runtime="torch"),
        Encoder.from_pretrained(release_folder, runtime="onnx"),
    )
