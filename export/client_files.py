"""The small files that tell each client how to use a release, in the union of the schemas they read.

What reads what, and the traps: transformers 5 reads `rope_parameters`, transformers 4 `rope_theta` and `rope_scaling`;
sentence-transformers 6 reads `pooling_mode`, 5.x the old booleans; text-embeddings-inference reads
`use_bidirectional_attention` where others read `is_causal`; vLLM offers shorter vectors only if the sizes are named
here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drama_models.profile import POOLING_MODES
from drama_models.rotary import rotary_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drama_models.profile import Profile

OLD_POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
DROPPED_SETTINGS = ("architectures", "auto_map", "_name_or_path", "transformers_version", "quantization_config")


def release_config(config: Mapping[str, Any], profile: Profile, *, pad_token_id: int) -> dict[str, Any]:
    """config.json of a release, from that of the retriever."""
    kept = {key: value for key, value in config.items() if key not in DROPPED_SETTINGS}
    changed: dict[str, Any] = {
        "dtype": "float32",
        "torch_dtype": "float32",
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        "is_causal": not profile.bidirectional,
        "use_bidirectional_attention": profile.bidirectional,
        "pad_token_id": pad_token_id,
        "is_matryoshka": bool(profile.dims),
        "matryoshka_dimensions": list(profile.dims),
    }
    of_kind = {"architectures": ["BertModel"]} if config.get("model_type") == "bert" else _of_llama(config, profile)
    return dict(sorted((kept | changed | of_kind).items()))


def _of_llama(config: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    rope = rotary_settings(config)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    settings: dict[str, Any] = {
        "architectures": ["LlamaModel"],
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "tie_word_embeddings": False,  # there is no head to tie
        "use_cache": False,
    }
    return settings | ({"auto_map": {"AutoModel": "modeling_drama.DramaModel"}} if profile.bidirectional else {})


def sentence_transformers_files(profile: Profile) -> dict[str, Any]:
    """The files that sentence-transformers 5.x and 6.x both read, by name."""
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if profile.normalise:
        modules.append(("2_Normalize", "Normalize"))
    pooling = POOLING_MODES[profile.pooling]
    ours: dict[str, Any] = {}  # what drama_models reads beside it
    if profile.title_separator != " ":
        ours["title_separator"] = profile.title_separator
    if profile.instruct is not None:
        ours["instruct_format"] = asdict(profile.instruct)
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"{package}.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": profile.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": profile.prompts | {"query": profile.query_prompt, "document": profile.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if profile.normalise else "dot",
            **ours,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": profile.hidden_size,
            **{key: mode == pooling for mode, key in OLD_POOLING_KEYS.items()},
            "pooling_mode": pooling,
            "include_prompt": True,
        },
    }
    if profile.normalise:
        files["2_Normalize/config.json"] = {}
    return files


def tokenizer_files(config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json, loadable by transformers 4 and 5.

    Args:
        config: tokenizer_config.json of the retriever.
        max_length: tokens kept of each text.

    Returns:
        The files by name; a missing pad token is filled with EOS, since some clients insist on one.
    """
    names = {}
    for key in SPECIAL_TOKENS:
        value = config.get(key)
        if value is not None:
            names[key] = value["content"] if isinstance(value, dict) else value
    if "pad_token" not in names:
        names["pad_token"] = names["eos_token"] if "eos_token" in names else names["sep_token"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # transformers 5 writes a class that 4.x does not have
        "model_max_length": max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    return {"tokenizer_config.json": settings, "special_tokens_map.json": names}
