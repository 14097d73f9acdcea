"""What kind of value each known setting of a model folder must have, checked where its JSON files are read.

Whoever reads a setting later may rely on its kind: a folder from elsewhere, or a damaged one, is answered with the name
of the file and of the setting, before a wrong value becomes a wrong shape. Settings that are not known are let through,
and a null stands for one that is absent, but for the few that have a default (`NEVER_NULL`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

LARGEST_SIZE = 1 << 31  # of a matrix's side
MOST_LAYERS = 10_000
LLAMA_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
BERT_SIZES = (*LLAMA_SIZES, "max_position_embeddings")
LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class Kind:
    """A kind of value: a name for messages, and whether a value is of it."""

    name: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_whole(value: Any, most: int = LARGEST_SIZE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


SIZE = Kind(f"a whole number from 1 to {LARGEST_SIZE}", _is_whole)
LAYERS = Kind(f"a whole number from 1 to {MOST_LAYERS}", lambda value: _is_whole(value, MOST_LAYERS))
TOKEN_NUMBER = Kind(
    "a whole number, or a list of them",
    lambda value: all(isinstance(one, int) for one in (value if isinstance(value, list) else [value])),
)
PADDING = Kind("a whole number", lambda value: isinstance(value, int))
NUMBER = Kind("a number above 0", _is_number)
LENGTH = Kind("a number of tokens", lambda value: _is_number(value) and value >= 1)  # 1e30 where there is no limit
TEXT = Kind("text", _is_text)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
EPSILON = Kind("a number between 0 and 1", lambda value: isinstance(value, float) and 0 < value < 1)
ROTARY = Kind(
    "a mapping, whose rope_theta is a number above 0 and whose rope_type is text",
    lambda value: (
        isinstance(value, dict)
        and _is_number(value.get("rope_theta", 1.0))
        and _is_text(value.get("rope_type", value.get("type", "")))
    ),
)
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value)))
SIZES = Kind("a list of whole numbers above 0", lambda value: isinstance(value, list) and all(map(_is_whole, value)))
NAMED_TEXTS = Kind(
    "a mapping of names to texts",
    lambda value: isinstance(value, dict) and all(one is None or isinstance(one, str) for one in value.values()),
)
TEXT_OR_TEXTS = Kind("text, or a list of texts", lambda value: TEXT.holds(value) or TEXTS.holds(value))
TOKEN = Kind(
    "text, or a mapping with its `content`",
    lambda value: isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str)),
)

KINDS: dict[str, dict[str, Kind]] = {
    "config.json": {
        "model_type": TEXT, "architectures": TEXTS, "auto_map": MAPPING, "hidden_act": TEXT,
        "is_causal": FLAG, "use_bidirectional_attention": FLAG, "is_decoder": FLAG, "is_matryoshka": FLAG,
        "hidden_size": SIZE, "vocab_size": SIZE, "max_position_embeddings": SIZE, "matryoshka_dimensions": SIZES,
        "rms_norm_eps": EPSILON, "layer_norm_eps": EPSILON, "rope_theta": NUMBER,
        "rope_scaling": ROTARY, "rope_parameters": ROTARY,
        "bos_token_id": TOKEN_NUMBER, "eos_token_id": TOKEN_NUMBER, "pad_token_id": PADDING,
        "pooling_mode": TEXT_OR_TEXTS, "include_prompt": FLAG,  # of a pooling's configuration, of the same name
    },
    "tokenizer_config.json": {
        "model_max_length": LENGTH, "add_bos_token": FLAG, "add_eos_token": FLAG,
        "bos_token": TOKEN, "eos_token": TOKEN, "unk_token": TOKEN, "pad_token": TOKEN, "truncation_side": TEXT,
    },
    "config_sentence_transformers.json": {
        "prompts": NAMED_TEXTS, "default_prompt_name": TEXT, "title_separator": TEXT, "truncate_dim": SIZE,
    },
    "model.safetensors.index.json": {"weight_map": NAMED_TEXTS},
}  # fmt: skip
"""File name to setting to kind."""
SENTENCE_SETTINGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names under which sentence-transformers looks for the settings of its Transformer, the first that is there counts."""
TRANSFORMER_KINDS = {
    "max_seq_length": LENGTH, "do_lower_case": FLAG, "tokenizer_args": MAPPING, "processor_kwargs": MAPPING,
    "processing_kwargs": MAPPING,
}  # fmt: skip
KINDS |= dict.fromkeys(SENTENCE_SETTINGS, TRANSFORMER_KINDS)
NEVER_NULL = ("hidden_act", "rms_norm_eps", "layer_norm_eps", "rope_theta")  # they have a default where they are absent
LLAMA_KINDS = {
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
}
"""Of the architectures whose shapes are computed here; others may mean something else by these names."""
SHAPED = ("llama", "mistral", "qwen2", "bert")


def check_kinds(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a setting of the wrong kind.

    Args:
        path: the file, whose name says which settings are known.
        values: its content.

    Raises:
        ModelFolderError: naming file, setting, what is there and what should be.
    """
    for name, kind in _known(path, values).items():
        value = values.get(name)
        absent = name not in values if name in NEVER_NULL else value is None
        if not absent and not kind.holds(value):
            raise ModelFolderError(
                f"{path}: {name} is {str(value)[:60]!r} and must be {kind.name}; fetch the folder again."
            )


def without_nulls(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file without known settings that are null, so that whoever reads one gets its default."""
    known = _known(path, values)
    return {name: value for name, value in values.items() if value is not None or name not in known}


def _known(path: Path, values: Mapping[str, Any]) -> dict[str, Kind]:
    known = KINDS.get(path.name, {})
    shaped = path.name == "config.json" and values.get("model_type") in SHAPED
    return known | LLAMA_KINDS if shaped else known


def check_llama_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that no Llama can be built from; kinds were checked when it was read.

    Args:
        path: of the config.json.
        config: its content.

    Raises:
        ModelFolderError: a size is missing, or sizes contradict one another.
    """
    check_kinds(path, config)
    missing = [name for name in LLAMA_SIZES if config.get(name) is None]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "llama3":
        missing += [name for name in LLAMA3_SCALING if not _is_number(rope.get(name))]
        if not missing and not rope["low_freq_factor"] < rope["high_freq_factor"]:
            raise ModelFolderError(f"{path}: low_freq_factor must be below high_freq_factor; fetch the folder again.")
    if missing:
        raise ModelFolderError(f"{path} has no usable {missing[0]}, which a Llama needs; fetch the folder again.")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv_heads, head_dim = config.get("num_key_value_heads") or heads, config.get("head_dim")
    if heads % kv_heads:
        raise ModelFolderError(
            f"{path}: num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}; fetch it again."
        )
    if head_dim is None and hidden % heads:
        raise ModelFolderError(
            f"{path}: hidden_size={hidden} is no multiple of num_attention_heads={heads}, and there is no head_dim; "
            "fetch it again."
        )
    if (head_dim or hidden // heads) % 2:
        raise ModelFolderError(
            f"{path}: heads of {head_dim or hidden // heads} numbers cannot be rotated in pairs; fetch it again."
        )


def check_bert_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that no BERT can be built from; arguments as of `check_llama_settings`.

    Raises:
        ModelFolderError: a size is missing, or sizes contradict one another.
    """
    check_kinds(path, config)
    missing = [name for name in BERT_SIZES if config.get(name) is None]
    if missing:
        raise ModelFolderError(f"{path} has no usable {missing[0]}, which a BERT needs; fetch the folder again.")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        raise ModelFolderError(
            f"{path}: hidden_size={hidden} is no multiple of num_attention_heads={heads}; fetch the folder again."
        )
