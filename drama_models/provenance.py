"""`provenance.json`: how a folder was made, and from what, all the way back to the source model.

Every stage writes one into the folder it makes: its name, its full recipe, the versions of the packages that shaped the
result, hashes of the inputs and of the model files it made, the measured figures, and the parent folder's own
provenance. A model card is written from this chain and from nothing else.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_file, sha256_of_file, sha256_of_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME, FILES = "provenance.json", "files"
RECORDED_SUFFIXES = (".json", ".txt", ".safetensors", ".onnx", ".onnx_data")  # what decides a model's vectors
NOT_RECORDED = (FILE_NAME, "verification.json")
RECORDED_PACKAGES = (
    "drama-models",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "numpy",
)


def write_provenance(
    folder: str | Path,
    *,
    stage: str,
    recipe: object,
    inputs: Mapping[str, str | Path],
    figures: dict[str, Any],
    parent: str | Path | None = None,
) -> dict[str, Any]:
    """Write `provenance.json` into a finished folder; its model files must not change afterwards.

    Args:
        folder: the folder the stage made.
        stage: what made it, such as "pruning.recover".
        recipe: the stage's settings, a dataclass or a dictionary.
        inputs: role to folder or file; each is recorded by name and content hash, never by its absolute path.
        figures: what was measured, JSON values only.
        parent: folder whose provenance this one continues, usually the model that went in.

    Returns:
        The record as written.

    Raises:
        ModelFolderError: the parent's record is damaged.
        FileNotFoundError: there is no such input, such as a model's name on the hub where its folder is meant.
    """
    record = {
        "stage": stage,
        "recipe": plain_settings(recipe),
        "versions": installed_versions(),
        "inputs": {role: {"name": Path(path).name, "sha256": _hash(path)} for role, path in inputs.items()},
        FILES: model_files(folder),
        "figures": _plain(figures),
        "parent": read_provenance(parent) if parent is not None else None,
    }
    with atomic_file(Path(folder) / FILE_NAME) as path:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def model_files(folder: str | Path) -> dict[str, str]:
    """Name and SHA-256 of the files below a folder that a model is loaded from; see `drama_models.integrity`."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix in RECORDED_SUFFIXES and path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found if path.name not in NOT_RECORDED}
    return {name: sha256_of_file(path) for name, path in names.items()}


def plain_settings(recipe: object) -> dict[str, Any]:
    """A stage's settings as its record keeps them: JSON values, no absolute paths.

    Args:
        recipe: a dataclass or a dictionary.
    """
    settings = asdict(recipe) if is_dataclass(recipe) and not isinstance(recipe, type) else dict(recipe)  # type: ignore[call-overload]
    return _plain(settings)


def read_provenance(folder: str | Path) -> dict[str, Any] | None:
    """The record of a folder, None where it has none (a model from elsewhere).

    Raises:
        ModelFolderError: it is damaged.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ModelFolderError(f"{path} is damaged; fetch or make the folder again.")
    return record


def chain(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The record and its ancestors, oldest first."""
    stages = []
    while record is not None:
        stages.append(record)
        record = record.get("parent")
    return stages[::-1]


def installed_versions() -> dict[str, str]:
    """Versions of Python and of those packages, among the ones that shape results, that are installed."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _hash(path: str | Path) -> str:
    return sha256_of_folder(path) if Path(path).is_dir() else sha256_of_file(path)


def _plain(value: Any) -> Any:
    """JSON values: tuples as lists; paths with forward slashes, and never the layout of one machine."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, Path):
        return value
    if value.is_absolute():
        value = value.relative_to(Path.cwd()) if value.is_relative_to(Path.cwd()) else Path(value.name)
    return value.as_posix()
