"""Bulk encoding: shards equal a single call, a killed run resumes to the same bytes, other jobs are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama_models import Encoder
from drama_models.bulk import encode_shards, read_manifest, read_shards
from drama_models.bulk_ray import make_worker
from drama_models.cli import main
from drama_models.errors import CollectionError, MissingExtraError, ModelFolderError, TextError, TextsCutWarning
from drama_models.folders import sha256_of_folder
from drama_models.quantisation import EmbeddingPrecision, quantise, value_ranges
from tests.conftest import TEXTS

DOCUMENTS = [(f"d{number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture
def encoder(release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder)


def test_shards_equal_one_call(encoder: Encoder, tmp_path: Path) -> None:
    manifest = encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=25)
    assert (manifest["count"], manifest["dim"], len(manifest["shards"])) == (96, 48, 4)
    found = list(read_shards(tmp_path))
    assert [key for ids, _ in found for key in ids] == [key for key, _ in DOCUMENTS]
    whole = encoder.encode_documents([text for _, text in DOCUMENTS])
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in found]), whole, atol=1e-6)


def test_a_second_run_encodes_only_what_is_missing_or_changed(encoder: Encoder, tmp_path: Path) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=25)
    before = sha256_of_folder(tmp_path)
    encoded: list[int] = []
    counted = CountingEncoder(encoder, encoded)
    encode_shards(counted, DOCUMENTS, tmp_path, shard_documents=25)
    assert encoded == []
    (tmp_path / "00002.npy").unlink()
    encode_shards(counted, DOCUMENTS, tmp_path, shard_documents=25)
    assert encoded == [25]
    assert sha256_of_folder(tmp_path) == before
    changed = [(key, "other text" if key == "d3" else text) for key, text in DOCUMENTS]
    encode_shards(counted, changed, tmp_path, shard_documents=25)
    assert encoded == [25, 25]


def test_cut_texts_are_counted_once_for_all_shards(release_folder: Path, tmp_path: Path) -> None:
    documents = [(str(number), "word " * 300) for number in range(5)]
    with pytest.warns(TextsCutWarning, match="5 texts were longer") as caught:
        encode_shards(Encoder.from_pretrained(release_folder), documents, tmp_path / "vectors", shard_documents=2)
    assert len(caught) == 1


class CountingEncoder(Encoder):
    """The same encoder, noting how many documents each call encodes."""

    def __init__(self, inner: Encoder, encoded: list[int]) -> None:
        self.__dict__.update(inner.__dict__)
        self.encoded = encoded

    def encode_documents(self, documents: object, **_: object) -> np.ndarray:
        assert isinstance(documents, list)
        self.encoded.append(len(documents))
        return super().encode_documents(documents)


KILLED = """
import sys
from tests.drama_models.test_bulk import DOCUMENTS, slow
from drama_models import Encoder
from drama_models.bulk import encode_shards
encode_shards(Encoder.from_pretrained(sys.argv[1]), slow(DOCUMENTS), sys.argv[2], shard_documents=8)
"""


def slow(documents: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for document in documents:
        time.sleep(0.02)
        yield document


def test_a_killed_run_resumes_to_the_same_bytes(encoder: Encoder, release_folder: Path, tmp_path: Path) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path / "whole", shard_documents=8)
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(release_folder), str(killed)])
    deadline = time.monotonic() + 300
    while not (killed / "00002.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (killed / "00002.json").exists()
    with pytest.raises(CollectionError, match="not a finished folder"):
        read_manifest(killed)
    encode_shards(encoder, DOCUMENTS, killed, shard_documents=8)
    assert sha256_of_folder(killed) == sha256_of_folder(tmp_path / "whole")


def test_vectors_of_another_job_or_damaged_ones_are_refused(
    encoder: Encoder, release_folder: Path, tmp_path: Path
) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=50)
    with pytest.raises(CollectionError, match=r"another dim \(48, not 16\)"):
        encode_shards(Encoder.from_pretrained(release_folder, dim=16), DOCUMENTS, tmp_path, shard_documents=50)
    data = bytearray((tmp_path / "00001.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "00001.npy").write_bytes(data)
    with pytest.raises(CollectionError, match=r"00001\.npy is not the file that was written"):
        list(read_shards(tmp_path))


@pytest.mark.parametrize("precision", ["int8", "ubinary"])
def test_codes_are_stored_and_come_back_as_vectors(
    encoder: Encoder, tmp_path: Path, precision: EmbeddingPrecision
) -> None:
    manifest = encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=25, precision=precision)
    assert manifest["precision"] == precision
    whole = encoder.encode_documents([text for _, text in DOCUMENTS])
    stored = np.concatenate([np.load(tmp_path / f"{number:05}.npy") for number in range(4)])
    expected = quantise(whole, precision, value_ranges(whole[:25]))  # the first shard's
    assert (stored == expected).mean() > 0.999  # another batch may round a value over the edge of a step
    assert stored.dtype == expected.dtype
    back = np.concatenate([vectors for _, vectors in read_shards(tmp_path)])
    assert back.shape == whole.shape
    assert back.dtype == np.float32
    cosines = (back * whole).sum(axis=1) / np.linalg.norm(back, axis=1)
    assert cosines.min() > (0.98 if precision == "int8" else 0.6)
    before = sha256_of_folder(tmp_path)
    (tmp_path / "00001.npy").unlink()  # as if killed before it
    encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=25, precision=precision)
    assert sha256_of_folder(tmp_path) == before
    with pytest.raises(CollectionError, match=rf"another precision \({precision}, not float32\)"):
        encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=25)


def test_ranges_of_other_documents_make_every_shard_anew(encoder: Encoder, tmp_path: Path) -> None:
    encode_shards(encoder, DOCUMENTS[50:] + DOCUMENTS[:50], tmp_path / "one", shard_documents=50, precision="int8")
    changed = [("new", "Another text."), *DOCUMENTS[51:], *DOCUMENTS[:50]]
    encode_shards(encoder, changed, tmp_path / "one", shard_documents=50, precision="int8")
    encode_shards(encoder, changed, tmp_path / "two", shard_documents=50, precision="int8")
    assert sha256_of_folder(tmp_path / "one") == sha256_of_folder(tmp_path / "two")
    (tmp_path / "one" / "ranges.npy").write_bytes((tmp_path / "one" / "ranges.npy").read_bytes()[:-1] + b"x")
    with pytest.raises(CollectionError, match=r"ranges\.npy is not the file that was written"):
        list(read_shards(tmp_path / "one"))
    with pytest.raises(CollectionError, match="at least two documents"):
        encode_shards(encoder, DOCUMENTS[:1], tmp_path / "three", precision="int8")
    assert encode_shards(encoder, DOCUMENTS[:1], tmp_path / "three")["count"] == 1  # as the error advises


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_documents": 0}, "shard_documents=0 must be a whole number of at least 1"),
        ({"shard_documents": 2.5}, "shard_documents=2.5 must be a whole number"),
        ({"engine": "rey"}, "engine='rey' must be one of local, ray"),
    ],
)
def test_settings_that_are_none_are_refused_before_a_folder_is_made(
    encoder: Encoder, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_shards(encoder, DOCUMENTS, tmp_path / "vectors", **settings)
    assert not (tmp_path / "vectors").exists()


def test_without_a_terminal_lines_say_how_long_is_left(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("drama_models.bulk_progress.LINE_EVERY_S", 0.0)
    encode_shards(encoder, DOCUMENTS, tmp_path, shard_documents=40, total=len(DOCUMENTS), show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"encode {done} documents" for done in (40, 80, 96)]
    assert all(" documents/s | " in line and line.endswith("left") for line in lines)


def test_without_ray_the_error_names_the_extra(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"engine='ray' needs .* pip install 'drama-models\[ray\]'"):
        encode_shards(encoder, DOCUMENTS, tmp_path, engine="ray")


def test_a_worker_refuses_a_folder_that_has_changed(release_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(release_folder, tmp_path / "release")
    encoder = Encoder.from_pretrained(folder, dim=16)
    again, fingerprint = encoder.again(), encoder.fingerprint()
    assert (again.dim, again.fingerprint()) == (16, fingerprint)
    config = folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ModelFolderError, match="is not the model that the other machines have"):
        make_worker(partial(Encoder.from_pretrained, folder, verify=False), fingerprint, lambda *_: {})


def test_another_maximum_length_is_another_job(encoder: Encoder, release_folder: Path, tmp_path: Path) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path)
    assert "max_length" not in json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    shorter = Encoder.from_pretrained(release_folder, max_length=5)
    with pytest.raises(CollectionError, match=r"another max_length \(None, not 5\)"):
        encode_shards(shorter, DOCUMENTS, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["job.json", "manifest.json", "00000.json"])
def test_damaged_json_is_named_when_read_and_mended_when_encoded(
    encoder: Encoder, tmp_path: Path, name: str, content: bytes
) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path)
    before = sha256_of_folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "job.json":
        with pytest.raises(CollectionError, match=r"job\.json is damaged"):
            encode_shards(encoder, DOCUMENTS, tmp_path)
        return
    with pytest.raises(CollectionError, match=name):
        list(read_shards(tmp_path))
    encode_shards(encoder, DOCUMENTS, tmp_path)
    assert sha256_of_folder(tmp_path) == before


def test_an_id_that_was_changed_on_disk_is_found(encoder: Encoder, tmp_path: Path) -> None:
    encode_shards(encoder, DOCUMENTS, tmp_path)
    before, path = sha256_of_folder(tmp_path), tmp_path / "00000.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"d1"', '"d_"'), encoding="utf-8")
    with pytest.raises(CollectionError, match=r"00000\.json is not the file that was written"):
        list(read_shards(tmp_path))
    encode_shards(encoder, DOCUMENTS, tmp_path)
    assert sha256_of_folder(tmp_path) == before


def test_what_is_no_text_is_named_by_its_place_among_all_documents(release_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder)
    documents: list[Any] = [(f"d{number}", "text") for number in range(5)]
    for wrong, error, message in (
        (("d5", None), TextError, "Text number 5 is NoneType, not str"),
        ((6, "text"), ValueError, "The id of document 5 is 6; pass text"),
    ):
        given: list[Any] = [*documents, wrong]
        with pytest.raises(error, match=message):
            encode_shards(encoder, given, tmp_path / "out", shard_documents=2)


def test_an_id_that_was_given_twice_makes_no_index(
    release_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_shards(Encoder.from_pretrained(release_folder), [("a", "x"), ("a", "y")], tmp_path / "vectors")
    assert main(["index", str(tmp_path / "vectors"), str(tmp_path / "index")]) == 2
    assert "vectors makes no index. Document id 'a' is in the index already" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
