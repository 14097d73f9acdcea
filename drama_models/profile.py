"""The profile: everything that turns hidden states into an embedding, as data read from the model folder.

Its stored form is config.json (attention direction, trained dimensions) and sentence-transformers' own files (pooling,
prompts, length, normalisation), so a profile needs no file of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from drama_models.errors import AttentionDirectionError, ModelFolderError
from drama_models.model_folder import read_json

if TYPE_CHECKING:
    from pathlib import Path

Pooling = Literal["mean", "last", "cls"]
DRAMA_CLASS = "DramaModel"
DRAMA_QUERY_PROMPT = "Query: "
DRAMA_MAX_LENGTH = 8192
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "gpt2", "gpt_neox")
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "lasttoken": "last",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How a model folder's hidden states become embeddings."""

    hidden_size: int
    """Size of the full embedding."""
    bidirectional: bool
    """Whether every token sees every other, or only earlier ones."""
    pooling: Pooling
    """mean over all real tokens, last real token, or first token (cls)."""
    query_prompt: str
    """Text put before every query."""
    document_prompt: str
    """Text put before every document."""
    set_ends: bool
    """Put BOS and EOS around every text, whatever the tokenizer's own post-processor does."""
    max_length: int
    """Tokens kept of each text, BOS and EOS included."""
    normalise: bool
    """Scale embeddings to length 1, after cutting to `dim`."""
    dims: tuple[int, ...]
    """Trained Matryoshka sizes, largest first; empty where the folder does not say."""

    @classmethod
    def from_folder(cls, folder: Path) -> Profile:
        """Read the profile of a model folder.

        Raises:
            ModelFolderError: a missing or damaged file, or a pooling that is not supported.
            AttentionDirectionError: the folder relies on code of its own that we do not know.
        """
        config = read_json(folder / "config.json")
        drama = is_drama(config)
        modules = _sentence_transformers_modules(folder)
        prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
        return cls(
            hidden_size=_required(config, "hidden_size", folder),
            bidirectional=attention_is_bidirectional(config, folder),
            pooling=_pooling(folder, modules),
            query_prompt=prompts.get("query", DRAMA_QUERY_PROMPT if drama else ""),
            document_prompt=prompts.get("document", ""),
            set_ends=drama,
            max_length=_max_length(folder, config, drama=drama),
            normalise=any(kind.endswith("Normalize") for kind in modules.values()) if modules else True,
            dims=tuple(sorted(config.get("matryoshka_dimensions") or (), reverse=True)),
        )


def is_drama(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a DramaModel: ours, or one of the published folders."""
    remote_class = str((config.get("auto_map") or {}).get("AutoModel", ""))
    return DRAMA_CLASS in (config.get("architectures") or []) or remote_class.endswith(f".{DRAMA_CLASS}")


def attention_is_bidirectional(config: dict[str, Any], folder: Path) -> bool:
    """Attention direction of a folder: its own word, else what its class is known to do.

    Raises:
        AttentionDirectionError: its class comes with code of its own, which is not run, and says nothing.
    """
    if "is_causal" in config:
        return not config["is_causal"]
    if config.get("use_bidirectional_attention"):
        return True
    if is_drama(config):
        return True
    if (config.get("auto_map") or {}).get("AutoModel"):
        raise AttentionDirectionError(
            f"{folder} brings its own model code ({config['auto_map']['AutoModel']}), which is never run, and its "
            "config.json does not say whether attention is causal; set `is_causal` there if you know it."
        )
    return config.get("model_type") not in DECODERS


def _sentence_transformers_modules(folder: Path) -> dict[str, str]:
    """Module path to class name, from modules.json; empty where the folder has none."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    try:
        return {entry["path"]: entry["type"] for entry in json.loads(path.read_text(encoding="utf-8"))}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ModelFolderError(f"{path} is not a list of modules; fetch the folder again.") from None


def _pooling(folder: Path, modules: dict[str, str]) -> Pooling:
    path = next((name for name, kind in modules.items() if kind.endswith("Pooling")), None)
    if path is None:
        return "mean"  # what sentence-transformers does with a bare model
    config = read_json(folder / path / "config.json")
    wanted = config.get("pooling_mode") or [key for key in config if key.startswith("pooling_mode_") and config[key]]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if len(names) != 1 or names[0] not in POOLINGS:
        raise ModelFolderError(
            f"{folder / path / 'config.json'} asks for pooling {names}; supported are {', '.join(POOLINGS)}."
        )
    if config.get("include_prompt") is False:
        raise ModelFolderError(f"{folder / path / 'config.json'} leaves the prompt out of pooling; not supported.")
    return POOLINGS[names[0]]


def _max_length(folder: Path, config: dict[str, Any], *, drama: bool) -> int:
    limits = [config.get("max_position_embeddings"), DRAMA_MAX_LENGTH if drama else None]
    limits.append(_optional(folder / "sentence_bert_config.json").get("max_seq_length"))
    limits.append(_optional(folder / "tokenizer_config.json").get("model_max_length"))
    return int(min(limit for limit in (*limits, 1 << 20) if limit))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _required(config: dict[str, Any], key: str, folder: Path) -> int:
    if not isinstance(config.get(key), int):
        raise ModelFolderError(f"{folder / 'config.json'} has no whole number `{key}`; fetch the folder again.")
    return int(config[key])
