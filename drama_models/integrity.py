"""Are a model's files the ones that were written? Their SHA-256 is compared with `provenance.json`'s on loading.

Configuration, tokenizer and the like are compared every time, which takes milliseconds. Weights are compared too, about
a second for each GiB. The hash of a large file is then remembered in the user's cache as long as its size, inode and
times of change stay what they are: later starts, and the check whether an index belongs to a model, cost nothing. A
folder from elsewhere has no such record, and nothing is compared.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING

from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_file, cache_folder, inside, sha256_of_file
from drama_models.provenance import FILE_NAME, FILES, read_provenance

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".onnx_data")
REMEMBERED_BYTES = 1 << 22  # of a smaller file the hash is made anew in some milliseconds
SETTLED_S = 2.0  # a file that changed this recently may change again without another time of change


def check_settings(*folders: Path | None) -> None:
    """Compare the recorded files of model folders that are not weights.

    Raises:
        ModelFolderError: one is missing or not the one that was written, or the record is damaged.
    """
    for folder in filter(None, folders):
        for path, expected in _recorded(folder).items():
            if path.suffix not in WEIGHT_SUFFIXES:
                _check(path, expected)


def check_weights(folder: Path, part: Path, *, graph: str | None = None) -> None:
    """Compare the recorded weights that are about to be read; those that are gone are for the runtime to miss.

    Args:
        folder: of the model, with the record.
        part: the folder below it, or itself, whose weights are read.
        graph: name of an ONNX graph below `part` that is read too, with the file of its data.

    Raises:
        ModelFolderError: a file is not the one that was written, or the record is damaged.
    """
    graphs = set() if graph is None else {part / graph, part / f"{graph}_data"}
    for path, expected in _recorded(folder).items():
        wanted = path in graphs or (path.suffix == ".safetensors" and path.is_relative_to(part))
        if wanted and path.is_file():
            _check(path, expected)


def known_sha256(path: Path) -> str:
    """SHA-256 of a file: remembered if it is large and has not changed since it was read last."""
    status = path.stat()
    if status.st_size < REMEMBERED_BYTES:
        return sha256_of_file(path)
    known_by = [str(path.resolve()), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_folder() / "sha256" / hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:32]
    try:
        return note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        found = sha256_of_file(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_S:
        _remember(note, found)
    return found


def _remember(note: Path, value: str) -> None:
    try:
        with atomic_file(note) as partial:
            partial.write_text(value, encoding="ascii")
    except OSError:
        return  # a cache that cannot be written to makes the next start slower, no more


def _recorded(folder: Path) -> dict[Path, str]:
    try:
        recorded = (read_provenance(folder) or {}).get(FILES, {})
        return {inside(folder, name): str(value) for name, value in recorded.items()}
    except (AttributeError, ValueError):
        raise ModelFolderError(f"{folder / FILE_NAME} is damaged; fetch the folder again.") from None


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ModelFolderError(
            f"{path} is missing, and {FILE_NAME} says that it belongs to this model; fetch it again."
        )
    if known_sha256(path) != expected:
        raise ModelFolderError(
            f"{path} is not the file that was written: its SHA-256 is not the one in {FILE_NAME}. Fetch it again; if "
            "you changed it yourself, load it with verify=False (--no-verify)."
        )
