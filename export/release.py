"""`python -m export release`: from a trained retriever to one folder that every client loads as it is."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from drama_models.encoder import Encoder
from drama_models.errors import DimensionError, LengthError, ModelFolderError, PrecisionError, TextsCutWarning
from drama_models.folders import atomic_folder, check_apart
from drama_models.layout import find_layouts
from drama_models.model_folder import check_llama_weights, llama_tensor_shapes, read_json, weight_files
from drama_models.profile import EXAMPLES, Profile
from drama_models.provenance import write_provenance
from drama_models.runtimes.bert_shape import BertShape, check_bert_weights, stock_name
from drama_models.sample_texts import SAMPLE_TEXTS
from drama_models.tokenisation import cuts_starts
from export.card import CARD_FILE, asks_for_llama, write_card
from export.int8_onnx import write_int8_onnx
from export.release_settings import write_settings
from export.to_onnx import OnnxPrecision, external_data_files, write_onnx
from export.verification import write_verification
from export.verify import MIN_COSINE, MODEL_CODE, difference, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from export.verify import Parity

LLAMA, BERT = "llama", "bert"


@dataclass(frozen=True, kw_only=True)
class FolderRecipe:
    """What every release is asked for, whatever it is made from."""

    out: Path
    """Folder to make."""
    name: str = ""
    """Name on the card; the folder's by default."""
    license: str = "other"
    """Licence identifier on the card; carry over the source model's."""
    max_length: int | None = None
    """Tokens kept of each text; the source's by default."""
    dims: tuple[int, ...] = ()
    """Matryoshka sizes to announce; the source's by default."""
    languages: tuple[str, ...] = ()
    """Two-letter codes on the card."""
    onnx: tuple[OnnxPrecision, ...] = ("fp32",)
    """Graphs to write, of fp32, fp16 and int8; fp32 is always among them, since clients are compared on it."""

    def __post_init__(self) -> None:
        if "fp32" not in self.onnx:
            raise ValueError(f"onnx={list(self.onnx)} lacks fp32, which clients load by default; add it.")
        if self.max_length is not None and self.max_length <= 2:
            raise ValueError(
                f"max_length={self.max_length} leaves no room between the two ends of a text; choose more tokens, or "
                "leave it out for the source's own limit."
            )
        name = self.name or self.out.name
        if asks_for_llama(self.license) and not name.rpartition("/")[2].lower().startswith("llama"):
            raise ValueError(f"license={self.license!r} wants a name that begins with Llama; pass --name Llama-{name}.")


@dataclass(frozen=True, kw_only=True)
class ReleaseRecipe(FolderRecipe):
    """Settings of a release."""

    retriever: Path
    """Folder that training made."""


def release(recipe: ReleaseRecipe) -> list[Parity]:
    """Write the release folder, after every installed client has loaded it and agreed with the others.

    Returns:
        How far each client is from our own encoder.

    Raises:
        ModelFolderError: the retriever is no complete folder of a Llama or BERT, or a client disagrees.
        DimensionError: an announced size that the model does not have.
    """
    origin = Origin(stage="export.release", role="retriever", settings=recipe)
    return write_release(recipe.retriever, recipe, origin)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What provenance and card say about where a release comes from."""

    stage: str
    """Command that makes it."""
    role: str
    """What the source folder is to that command."""
    settings: object
    """Its recipe, a dataclass or a dictionary."""
    base_model: str = ""
    """Hub name of published weights that are passed on unchanged; empty for a model of our own."""


def write_release(
    source: Path,
    recipe: FolderRecipe,
    origin: Origin,
    measure: Callable[[Path], dict[str, Any]] | None = None,
) -> list[Parity]:
    """Write a release of any Llama or BERT encoder whose profile can be read; `release` and `adopt` are this.

    Args:
        source: model folder; only JSON and safetensors files of it are read.
        recipe: what is asked for.
        origin: for provenance and card.
        measure: further figures, measured on the folder before it is in place; may refuse it by raising.

    Returns:
        How far each client is from our own encoder.

    Raises:
        ModelFolderError: the source is not a complete folder of one of them, or a client disagrees.
        OutputError: the place to write to is taken, by the source or by what was not made here.
        DimensionError: an announced size that the model does not have.
        LengthError: more tokens are asked for than the model has positions for.
        PrecisionError: a graph in int8 is asked for, and would lose too much, or cannot be made.
    """
    check_apart(recipe.out, source)
    backbone = _backbone(source)
    config = read_json(backbone / "config.json")
    names = _checked_names(backbone, config)
    if config.get("model_type") == BERT and "int8" in recipe.onnx:
        raise PrecisionError(f"{source} is a BERT, whose graphs are not made in eight bits; leave int8 out of --onnx.")
    profile = _release_profile(source, recipe)
    if cuts_starts(backbone):
        raise ModelFolderError(
            f"{source} keeps the ends of texts that are too long (truncation_side in tokenizer_config.json), and "
            "clients of graphs keep their starts; set it to right if the model may read them so."
        )
    with atomic_folder(recipe.out) as partial, _named(partial, recipe.out):
        _write_weights(backbone, partial, names)
        write_settings(backbone, config, profile, partial)
        if profile.examples:
            shutil.copy(source / EXAMPLES, partial / EXAMPLES)
        if profile.bidirectional and config.get("model_type") != BERT:
            shutil.copy(MODEL_CODE, partial / MODEL_CODE.name)
        _check_same_vectors(source, partial, profile)
        figures = _write_graphs(partial, recipe.onnx)
        figures |= measure(partial) if measure else {}
        parity = verify(partial, SAMPLE_TEXTS)
        record = write_provenance(
            partial,
            stage=origin.stage,
            recipe=origin.settings,
            inputs={origin.role: source},
            figures=figures | {"parity": [client.as_json() for client in parity]},
            parent=source,
        )
        write_card(
            partial / CARD_FILE,
            record,
            profile,
            name=recipe.name or recipe.out.name,
            license_id=recipe.license,
            languages=recipe.languages,
            base_model=origin.base_model,
        )
        write_verification(partial, parity)
    return parity


def _backbone(source: Path) -> Path:
    """Folder of the source's encoder.

    Raises:
        ModelFolderError: it has one for queries and another one for documents.
    """
    query, document = find_layouts(source)
    if query != document:
        raise ModelFolderError(
            f"{source} has one encoder for queries and another one for documents, and releases are made of one for "
            "both; sentence-transformers and drama_models load the folder as it is."
        )
    return query.backbone


@contextmanager
def _named(partial: Path, out: Path) -> Iterator[None]:
    """Let errors speak of the folder that was asked for, not of the hidden one beside it."""
    try:
        yield
    except ModelFolderError as error:
        raise type(error)(str(error).replace(partial.name, out.name)) from None


def _check_same_vectors(source: Path, made: Path, profile: Profile) -> None:
    """Compare source and release through our own encoder; clients are compared with the release alone.

    Raises:
        ModelFolderError: they differ, since the source has what no release carries over.
    """
    encoders = (
        Encoder.from_pretrained(folder, runtime="torch", max_length=profile.max_length, verify=False)
        for folder in (source, made)
    )
    texts = SAMPLE_TEXTS[1:-1]  # the first is empty, which may have no vector; the last is there to be cut
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextsCutWarning)  # of a release for very short texts
        before, after = (
            np.concatenate([encoder.encode_queries(texts), encoder.encode_documents(texts)]) for encoder in encoders
        )
    _, cosines = difference(after, before)
    if not cosines.min() >= MIN_COSINE:  # also where it is NaN
        raise ModelFolderError(
            f"The release of {source} would not encode as that folder does: smallest cosine {cosines.min():.6f} on "
            f"sample texts, at least {MIN_COSINE} is expected. The folder has something that releases do not carry "
            "over; drama_models loads it as it is."
        )


def _write_graphs(folder: Path, precisions: Sequence[OnnxPrecision]) -> dict[str, Any]:
    """Write the graphs; what was measured while converting, by precision."""
    figures: dict[str, Any] = {}
    for precision in precisions:
        if precision == "int8":
            figures["int8_graph"] = asdict(write_int8_onnx(folder))
        else:
            write_onnx(folder, precision)
    split = external_data_files(folder)
    if split:  # transformers.js looks for weights beside a graph only where the configuration says so
        config = read_json(folder / "config.json") | {"transformers.js_config": {"use_external_data_format": split}}
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return figures


def _checked_names(source: Path, config: dict[str, Any]) -> Container[str]:
    """Names of the encoder's weights by today's class, all of them there.

    Raises:
        ModelFolderError: some are not, or the model is of another kind.
    """
    kind = config.get("model_type", LLAMA)
    if kind == LLAMA:
        check_llama_weights(source, config)
        return llama_tensor_shapes(config).keys()
    if kind == BERT:
        check_bert_weights(source, config)
        return BertShape.from_config(config).weight_shapes().keys()
    raise ModelFolderError(
        f"{source} is a {kind}, and releases are made of Llama and BERT encoders; sentence-transformers and "
        "drama_models load the folder as it is."
    )


def _write_weights(retriever: Path, out: Path, names: Container[str]) -> None:
    """Encoder weights in float32 under the names of today's class; heads and poolers stay behind."""
    state = {}
    for path in weight_files(retriever):
        for stored, tensor in load_file(path).items():
            name = stock_name(stored.removeprefix("model."))
            if name in names:
                state[name] = tensor.float()
    save_torch_state_dict(state, out)


def _release_profile(source: Path, recipe: FolderRecipe) -> Profile:
    profile = Profile.from_folder(source)
    if profile.default_dim is not None:
        raise ModelFolderError(
            f"{source} asks for {profile.default_dim} coordinates by the truncate_dim of "
            "config_sentence_transformers.json, which most clients would not heed; take it out, and name the size with "
            "--dims."
        )
    if recipe.max_length is not None:
        if profile.most_tokens is not None and recipe.max_length > profile.most_tokens:
            raise LengthError(
                f"max_length={recipe.max_length} is beyond the {profile.most_tokens} tokens that {source} has position "
                "embeddings for; choose fewer, or leave it out for the source's own limit."
            )
        profile = replace(profile, max_length=recipe.max_length)
    if recipe.dims:
        wrong = [dim for dim in recipe.dims if not 1 <= dim <= profile.hidden_size]
        if wrong:
            raise DimensionError(f"dims={wrong} must lie between 1 and the model's {profile.hidden_size}.")
        profile = replace(profile, dims=tuple(sorted(recipe.dims, reverse=True)))
    return profile
