"""`python -m export release`: from a trained retriever to one folder that every client loads as it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer

from drama_models.errors import ModelFolderError
from drama_models.folders import atomic_folder
from drama_models.model_folder import check_llama_weights, read_json, weight_files
from drama_models.profile import Profile
from drama_models.provenance import write_provenance
from drama_models.sample_texts import SAMPLE_TEXTS
from export.card import CARD_FILE, write_card
from export.client_files import release_config, sentence_transformers_files, tokenizer_files
from export.to_onnx import write_onnx
from export.verify import largest_difference, verify

if TYPE_CHECKING:
    from export.verify import Parity

MODEL_CODE = Path(__file__).parents[1] / "drama_models" / "modeling_drama.py"


@dataclass(frozen=True, kw_only=True)
class ReleaseRecipe:
    """Settings of a release."""

    retriever: Path
    """Folder that training made."""
    out: Path
    """Folder to make."""
    name: str = ""
    """Name on the card; the folder's by default."""
    license: str = "other"
    """Licence identifier on the card; carry over the source model's."""
    max_length: int | None = None
    """Tokens kept of each text; the retriever's by default."""
    languages: tuple[str, ...] = ()
    """Two-letter codes on the card."""


def release(recipe: ReleaseRecipe) -> list[Parity]:
    """Write the release folder, after every installed client has loaded it and agreed with the others.

    Returns:
        How far each client is from our own encoder.

    Raises:
        ModelFolderError: the retriever is not a complete Llama folder, or a client disagrees.
    """
    config = read_json(recipe.retriever / "config.json")
    check_llama_weights(recipe.retriever, config)
    profile = replace(Profile.from_folder(recipe.retriever), query_prompt="Query: ")
    if recipe.max_length is not None:
        profile = replace(profile, max_length=recipe.max_length)
    with atomic_folder(recipe.out) as partial:
        _write_weights(recipe.retriever, partial)
        _write_settings(recipe.retriever, config, profile, partial)
        if profile.bidirectional:
            shutil.copy(MODEL_CODE, partial / MODEL_CODE.name)
        write_onnx(partial)
        parity = verify(partial, SAMPLE_TEXTS)
        figures = {"parity": [client.as_json() for client in parity]}
        record = write_provenance(
            partial,
            stage="export.release",
            recipe=recipe,
            inputs={"retriever": recipe.retriever},
            figures=figures,
            parent=recipe.retriever,
        )
        write_card(
            partial / CARD_FILE,
            record,
            profile,
            name=recipe.name or recipe.out.name,
            license_id=recipe.license,
            languages=recipe.languages,
        )
    return parity


def onnx_difference(parity: list[Parity]) -> float:
    """Largest absolute difference of an embedding coordinate between the ONNX graph and our torch runtime."""
    return largest_difference(parity, "onnxruntime")


def _write_weights(retriever: Path, out: Path) -> None:
    """Encoder weights in float32 under LlamaModel's names; a language-model head stays behind."""
    state = {}
    for path in weight_files(retriever):
        for name, tensor in load_file(path).items():
            if name != "lm_head.weight":
                state[name.removeprefix("model.")] = tensor.float()
    save_torch_state_dict(state, out)


def _write_settings(retriever: Path, config: dict[str, Any], profile: Profile, out: Path) -> None:
    shutil.copy(retriever / "tokenizer.json", out / "tokenizer.json")
    files = tokenizer_files(read_json(retriever / "tokenizer_config.json"), profile.max_length)
    pad_token = files["special_tokens_map.json"]["pad_token"]
    pad_token_id = Tokenizer.from_file(str(out / "tokenizer.json")).token_to_id(pad_token)
    if pad_token_id is None:
        raise ModelFolderError(f"{retriever}: the pad token {pad_token!r} is not in tokenizer.json; add it there.")
    files["config.json"] = release_config(config, profile, pad_token_id=pad_token_id)
    files |= sentence_transformers_files(profile)
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
