"""The settings and the tokenizer of a release, written anew from those of its source."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError
from drama_models.model_folder import read_json
from drama_models.tokenisation import end_token, load_tokenizer
from export.client_files import SPECIAL_TOKENS, release_config, sentence_transformers_files, tokenizer_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from drama_models.profile import Profile

ENDS = ("bos_token", "eos_token")
TOKENIZER = "tokenizer.json"
BERT_TOKENS = {
    "unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
}  # fmt: skip


def write_settings(source: Path, config: dict[str, Any], profile: Profile, out: Path) -> None:
    """Write configuration, tokenizer and what sentence-transformers reads into a release.

    Args:
        source: folder of the encoder that the release is made from.
        config: its config.json.
        profile: how the release encodes.
        out: folder of the release.

    Raises:
        ModelFolderError: the tokenizer is damaged, or has no token to fill batches with.
    """
    tokenizer = _write_tokenizer(source, profile, out)
    named = _special_tokens(source, config, profile, tokenizer)
    files = tokenizer_files(named, profile.max_length)
    pad_token = files["special_tokens_map.json"]["pad_token"]
    pad_token_id = tokenizer.token_to_id(pad_token)
    if pad_token_id is None:
        raise ModelFolderError(f"{source}: the pad token {pad_token!r} is not in tokenizer.json; add it there.")
    files["config.json"] = release_config(config, profile, pad_token_id=pad_token_id)
    files |= sentence_transformers_files(profile)
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _special_tokens(source: Path, config: Mapping[str, Any], profile: Profile, tokenizer: Tokenizer) -> dict[str, Any]:
    """Special tokens by their names, as the folder gives them; what it leaves out of BERT's own is added.

    Raises:
        ModelFolderError: there is none to fill batches with.
    """
    files = [source / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    stored = [read_json(path) for path in files if path.is_file()]
    named = BERT_TOKENS if config.get("model_type") == "bert" else {}
    named = {key: token for key, token in named.items() if tokenizer.token_to_id(token) is not None}
    for settings in stored:
        named |= {key: value for key, value in settings.items() if key in SPECIAL_TOKENS and value is not None}
    if profile.set_ends:  # some folders name BOS and EOS by number only
        named |= {key: end_token(source, tokenizer, named, key) for key in ENDS if key not in named}
    if not named.keys() & {"pad_token", "eos_token", "sep_token"}:
        number = config.get("pad_token_id")
        token = tokenizer.id_to_token(number) if isinstance(number, int) and number >= 0 else None
        if token is None:
            raise ModelFolderError(f"{files[-1]} names no pad_token; add it there.")
        named["pad_token"] = token
    return named


def _write_tokenizer(source: Path, profile: Profile, out: Path) -> Tokenizer:
    """The tokenizer file as it was, but for lower case and ends, which not all stock clients are told elsewhere."""
    tokenizer = load_tokenizer(source, set_ends=profile.set_ends)
    content = loaded = json.loads(tokenizer.to_str())  # all that there is of an older BERT with vocab.txt alone
    if (source / TOKENIZER).is_file():
        changed = {key: loaded[key] for key in ("normalizer", "post_processor")}
        content = read_json(source / TOKENIZER) | {"padding": None, "truncation": None} | changed
    (out / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return tokenizer
