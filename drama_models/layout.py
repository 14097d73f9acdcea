"""Where a model folder keeps its parts: one encoder, or one for queries and one for documents.

A pair of encoders (DRAGON, DPR) comes as a sentence-transformers folder with a Router, as a folder with two subfolders,
or as two repositories named `…-query-encoder` and `…-context-encoder`. Folders of such a pair without
sentence-transformers files follow DPR's convention: the state of the first token, compared by inner product, and [SEP]
between title and text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError
from drama_models.folders import inside
from drama_models.model_folder import find_model_folder, read_json, read_json_value

if TYPE_CHECKING:
    from drama_models.pooling import Pooling

MODULES, ROUTER = "modules.json", "router_config.json"
QUERY_ENCODER, CONTEXT_ENCODER = "query-encoder", "context-encoder"
PAIRED_SEPARATOR = " [SEP] "
PARTS = ["Transformer", "Pooling", "Normalize"]
"""Classes of the modules of one encoder, in their order; the last one is optional."""
DOCUMENT_WORDS = ("context", "document", "passage", "ctx")


@dataclass(frozen=True, kw_only=True)
class EncoderLayout:
    """Where the parts of one encoder are."""

    root: Path
    """Folder of the whole model, with the prompts."""
    backbone: Path
    """Folder with config.json, weights and tokenizer."""
    pooling: Path | Pooling
    """Configuration of the pooling; its name where the folder brings none."""
    normalise: bool
    """Whether embeddings are scaled to length 1."""
    title_separator: str = " "
    """Between title and text of a document, where the folder does not say."""


def find_folders(
    model: str | Path, document_model: str | Path | None, revision: str | None
) -> tuple[Path, Path | None]:
    """Folder of a model, and that of its document encoder where it is a folder of its own.

    Raises:
        ModelFolderError: one of them cannot be found.
    """
    if document_model is not None:
        return find_model_folder(model, revision), find_model_folder(document_model, revision)
    names, local = _pair(str(model)), Path(model)
    whole = local.is_dir() and ((local / MODULES).is_file() or not (local / "config.json").is_file())
    if names is None or whole:
        return find_model_folder(model, revision), None
    try:
        return find_model_folder(names[0], revision), find_model_folder(names[1], revision)
    except ModelFolderError as error:
        raise ModelFolderError(
            f"{model} is one of two encoders. {error} Or pass the other one as document_model=."
        ) from None


def find_layouts(folder: Path, document_folder: Path | None = None) -> tuple[EncoderLayout, EncoderLayout]:
    """The query encoder and the document encoder of a model; the same object where it has one for both.

    Args:
        folder: of the model, or of its query encoder.
        document_folder: of its document encoder, where that is a folder of its own.

    Raises:
        ModelFolderError: a file that says what the parts are is damaged, or names a part that is not there or that is
            not computed here.
    """
    if document_folder is not None:
        return _single(folder, paired=True), _single(document_folder, paired=True)
    if not (folder / MODULES).is_file() and not (folder / "config.json").is_file():
        query, document = _subfolder(folder, ("query",)), _subfolder(folder, DOCUMENT_WORDS)
        if query is not None and document is not None:
            return _single(query, paired=True), _single(document, paired=True)
    modules = read_modules(folder)
    router = next((path for path, kind in modules.items() if _class(kind) == "Router"), None)
    if router is not None:
        return _route(folder, modules, router, "query"), _route(folder, modules, router, "document")
    layout = _single(folder, paired=False)
    return layout, layout


def read_modules(folder: Path) -> dict[str, str]:
    """Module path to class name, from modules.json; empty where the folder has none.

    Raises:
        ModelFolderError: the file is not a list of modules, or names a part outside the folder.
    """
    path = folder / MODULES
    if not path.is_file():
        return {}
    try:
        modules = {_part(path, entry["path"]): _part(path, entry["type"]) for entry in read_json_value(path)}
    except (KeyError, TypeError):
        raise ModelFolderError(f"{path} is not a list of modules; fetch the folder again.") from None
    return modules


def _part(source: Path, name: str) -> str:
    """A module's class, or the path of its part, which must lie in the model's folder.

    Raises:
        ModelFolderError: it leads out of the folder.
        TypeError: it is no text.
    """
    try:
        inside(source.parent, name)
    except ValueError:
        raise ModelFolderError(
            f"{source} names a part outside the folder ({name!r}); it is no model folder to trust."
        ) from None
    return name


def _pair(name: str) -> tuple[str, str] | None:
    """Names of the query and the document encoder, where a name says that it is one of two; else None."""
    for suffix in (QUERY_ENCODER, CONTEXT_ENCODER):
        if name.rstrip("/").endswith(suffix):
            stem = name.rstrip("/").removesuffix(suffix)
            return stem + QUERY_ENCODER, stem + CONTEXT_ENCODER
    return None


def _single(folder: Path, *, paired: bool) -> EncoderLayout:
    modules = read_modules(folder)
    if not modules:  # "mean" is what sentence-transformers does with a bare model
        if not paired:
            return EncoderLayout(root=folder, backbone=folder, pooling="mean", normalise=True)
        return EncoderLayout(
            root=folder, backbone=folder, pooling="cls", normalise=False, title_separator=PAIRED_SEPARATOR
        )
    return _layout(folder, {folder / path: kind for path, kind in modules.items()})


def _route(folder: Path, modules: dict[str, str], router: str, name: str) -> EncoderLayout:
    """One route of a Router, in its place among the modules that all routes share."""
    path = folder / router / ROUTER
    config: dict[str, Any] = read_json(path)
    try:
        route = {folder / router / _part(path, part): str(config["types"][part]) for part in config["structure"][name]}
    except (KeyError, TypeError):
        raise ModelFolderError(f"{path} has no route {name!r}; a retriever needs `query` and `document`.") from None
    flat: dict[Path, str] = {}
    for part, kind in modules.items():
        flat |= route if part == router else {folder / part: kind}
    return _layout(folder, flat)


def _layout(root: Path, modules: dict[Path, str]) -> EncoderLayout:
    """What modules in this order compute.

    Raises:
        ModelFolderError: they compute something else than is computed here.
    """
    kinds = [_class(kind) for kind in modules.values()]
    if kinds not in (PARTS, PARTS[:-1]):
        raise ModelFolderError(
            f"{root / MODULES} makes vectors by {', '.join(kinds)}; supported are {', '.join(PARTS)} in this order, of "
            "which the last is optional. Use sentence-transformers itself for this model."
        )
    backbone, pooling, *_ = modules
    return EncoderLayout(root=root, backbone=backbone, pooling=pooling / "config.json", normalise=kinds == PARTS)


def _class(kind: str) -> str:
    """Name of a module's class, without its package where that is sentence-transformers."""
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _subfolder(folder: Path, words: tuple[str, ...]) -> Path | None:
    candidates = [
        path.parent for path in folder.glob("*/config.json") if any(word in path.parent.name for word in words)
    ]
    if len(candidates) > 1:
        names = ", ".join(sorted(path.name for path in candidates))
        raise ModelFolderError(f"{folder} has several encoders for one side ({names}); pass the two folders apart.")
    return candidates[0] if candidates else None
