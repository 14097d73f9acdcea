"""Encoder: order, streaming, dimensions, batch independence; all runtimes against each other and against the class."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from drama_models import DramaModel, Encoder
from drama_models import encoder as encoder_module
from drama_models.errors import DeviceError, DimensionError, MissingExtraError, ModelFolderError, TextsCutWarning
from drama_models.runtimes import choice
from drama_models.runtimes.openvino_runtime import has_bf16
from tests.conftest import TEXTS

if TYPE_CHECKING:
    from drama_models.runtimes.choice import RuntimeName

RUNTIMES = ["torch", "onnx", "onnx-file"]


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


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_warnings_point_at_the_callers_line_and_come_once(release_folder: Path, runtime: Any) -> None:
    with pytest.warns(UserWarning, match="dim=20 was not trained") as caught:
        encoder = Encoder.from_pretrained(release_folder, runtime=runtime, dim=20, max_length=32)
    with pytest.warns(UserWarning, match="dim=20 was not trained") as again:
        encoder.encode_queries(["text"], dim=20)
    with pytest.warns(TextsCutWarning) as cut:
        encoder.encode_documents(["word " * 60])
    with pytest.warns(TextsCutWarning) as streamed:
        list(encoder.stream_documents(["word " * 60]))
    for warned in (caught, again, cut, streamed):
        assert [entry.filename for entry in warned] == [__file__]


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


def test_auto_takes_onnx_for_a_llama_and_says_so(
    release_folder: Path, retriever_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="drama_models"):
        encoder = Encoder.from_pretrained(retriever_folder, threads=1)
    assert encoder.runtime.name == "onnx"
    assert encoder.runtime.description == "ONNX Runtime from safetensors, fp32, threads: 1"
    assert encoder.runtime.description in caplog.text
    assert Encoder.from_pretrained(release_folder, precision="fp16").runtime.name == "torch"
    sixteen_bits = "openvino" if has_bf16() else "torch"
    assert Encoder.from_pretrained(release_folder, precision="bf16").runtime.name == sixteen_bits
    assert Encoder.from_pretrained(release_folder, device="cpu").runtime.name == "torch"


@pytest.mark.parametrize("runtime", ["onnx", "onnx-file", "openvino", "torch"])
def test_batches_of_another_size_give_the_same_rows(
    release_folder: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Encoder.from_pretrained(release_folder, runtime=runtime).encode_documents(TEXTS)
    encoder = Encoder.from_pretrained(release_folder, runtime=runtime, batch_tokens=7)
    sizes: list[int] = []
    embed = encoder.runtime.embed

    def counted(batch: Sequence[np.ndarray]) -> np.ndarray:
        sizes.append(sum(map(len, batch)))
        return embed(batch)

    monkeypatch.setattr(encoder.runtime, "embed", counted)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), expected, atol=1e-5)
    assert len(sizes) > len(TEXTS) / 3
    with pytest.raises(ValueError, match="batch_tokens=0 must be above 0"):
        Encoder.from_pretrained(release_folder, runtime=runtime, batch_tokens=0)
    with pytest.raises(DeviceError, match="threads=0 must be a whole number above 0"):
        Encoder.from_pretrained(release_folder, runtime=runtime, threads=0)


@pytest.mark.parametrize("runtime", ["onnx", "onnx-file", "openvino"])
def test_a_device_that_a_runtime_does_not_have_is_refused(release_folder: Path, runtime: Any) -> None:
    with pytest.raises(DeviceError, match=r"computes on the CPU; device='cuda' needs runtime='torch'"):
        Encoder.from_pretrained(release_folder, runtime=runtime, device="cuda")


def test_auto_takes_a_graph_file_where_there_are_no_weights_and_torch_where_it_must(
    release_folder: Path, retriever_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_only = shutil.copytree(release_folder, tmp_path / "graph", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "model.onnx" in Encoder.from_pretrained(graph_only).runtime.description
    scaled = shutil.copytree(retriever_folder, tmp_path / "scaled", ignore=shutil.ignore_patterns("provenance.json"))
    set_config(scaled, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
    assert Encoder.from_pretrained(scaled).runtime.name == "torch"
    with pytest.raises(ModelFolderError, match=r"no onnx/model\.onnx, and Rotary scaling 'yarn'.*runtime='torch'"):
        Encoder.from_pretrained(scaled, runtime="onnx")
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'drama-models\[torch\]'"):
        Encoder.from_pretrained(scaled)
    (scaled / "model.safetensors").rename(scaled / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"has its weights as pickle \(pytorch_model\.bin\)"):
        Encoder.from_pretrained(scaled)


def test_a_precision_that_a_runtime_lacks_is_refused_with_those_it_has(release_folder: Path) -> None:
    refusals: list[tuple[choice.RuntimeName, choice.Precision, str]] = [
        ("torch", "int8", "auto, fp32, bf16, fp16"),
        ("onnx", "bf16", "needs runtime='torch' or 'openvino'; runtime='onnx' has fp32 and int8"),
        ("onnx-file", "fp16", "needs runtime='torch'; runtime='onnx-file' has fp32 alone"),
        ("onnx-file", "int8", "runtime='onnx'"),
    ]
    for runtime, precision, message in refusals:
        with pytest.raises(DeviceError, match=message):
            Encoder.from_pretrained(release_folder, runtime=runtime, precision=precision)
    with pytest.raises(DeviceError, match=r"compile=True is for runtime='torch'; runtime='onnx' has nothing"):
        Encoder.from_pretrained(release_folder, runtime="onnx", compile=True)
    assert Encoder.from_pretrained(release_folder, compile=True).runtime.name == "torch"


def test_fingerprint_depends_on_the_weights_and_not_on_the_runtime(release_folder: Path, tmp_path: Path) -> None:
    marks = {Encoder.from_pretrained(release_folder, runtime=name).fingerprint() for name in ("torch", "onnx")}
    assert len(marks) == 1
    shutil.copytree(release_folder, tmp_path / "copy")
    assert Encoder.from_pretrained(tmp_path / "copy").fingerprint() in marks
    data = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(data)
    assert Encoder.from_pretrained(tmp_path / "copy", verify=False).fingerprint() not in marks


@pytest.mark.parametrize(("prompts", "same"), [({"query": "Ask: "}, True), ({"document": "Passage: "}, False)])
def test_fingerprint_depends_on_the_prompt_of_documents_alone(
    release_folder: Path, tmp_path: Path, prompts: dict[str, str], same: bool
) -> None:
    folder = shutil.copytree(release_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("provenance.json"))
    path = folder / "config_sentence_transformers.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stored | {"prompts": stored["prompts"] | prompts}), encoding="utf-8")
    kept = Encoder.from_pretrained(folder).fingerprint() == Encoder.from_pretrained(release_folder).fingerprint()
    assert kept is same


ODD_PIECES = st.sampled_from(
    [
        "\ud800",
        "\udfff\ud83d",
        "\x00",
        "e\u0301\u0323",
        "\u200d",
        "\ufeff",
        "\u202e",
        "</s>",
        "<pad>",
        " ",
        "\r\n",
        "x" * 300,
    ]
)
ODD_TEXTS = st.lists(st.one_of(st.text(st.characters(exclude_categories=())), ODD_PIECES), max_size=6).map("".join)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(ODD_TEXTS, min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore::drama_models.errors.TextsCutWarning")
def test_arbitrary_unicode_gives_the_same_finite_vectors_in_every_runtime(
    every: dict[str, Encoder], texts: list[str]
) -> None:
    expected = every["torch"].encode_documents(texts)
    assert np.isfinite(expected).all()
    for encoder in every.values():
        np.testing.assert_allclose(encoder.encode_documents(texts), expected, atol=1e-4)
        alone = np.concatenate([encoder.encode_documents(text) for text in texts])
        np.testing.assert_allclose(alone, expected, atol=1e-4)


def test_a_line_of_ten_megabytes_gives_the_same_vector_in_every_runtime(every: dict[str, Encoder]) -> None:
    line = "a sea \ud800 e\u0301 \x00 日本語 " * 500_000
    with pytest.warns(UserWarning, match="1 texts were longer"):
        found = np.concatenate([encoder.encode_documents([line, "short"]) for encoder in every.values()])
    assert len(line.encode("utf-8", "surrogatepass")) > 10_000_000
    np.testing.assert_allclose(
        found.reshape(len(every), -1), np.tile(found[:2].reshape(1, -1), (len(every), 1)), atol=1e-4
    )


@pytest.fixture(scope="module")
def every(release_folder: Path) -> dict[str, Encoder]:
    names: list[RuntimeName] = ["torch", "onnx", "onnx-file", "openvino"]
    return {name: Encoder.from_pretrained(release_folder, runtime=name) for name in names}


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
