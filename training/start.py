"""The starting point of training: a backbone folder laid out as an encoder.

Attention direction and tokenizer ends are properties of a folder here, not of the code that loads it, so the retriever
is an encoder from its first step on. Decoders (Llama, Mistral, Qwen2, ...) get `is_causal` in their configuration and
BOS and EOS around every text; encoders (BERT, XLM-RoBERTa, ...) are taken as they are. Nothing is computed here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from drama_models.errors import AttentionDirectionError, LengthError, ModelFolderError
from drama_models.model_folder import check_llama_weights, read_json, tensor_shapes, weight_files
from drama_models.profile import DECODERS, most_tokens
from drama_models.tokenisation import load_tokenizer, put_ends

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

EMBEDDING = "embed_tokens.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_start_folder(backbone: Path, out: Path, *, bidirectional: bool) -> None:
    """Copy a backbone and make it an encoder: attention direction in its configuration, ends in its tokenizer.

    Args:
        backbone: folder with config.json, safetensors weights and tokenizer.json.
        out: folder to make.
        bidirectional: whether every token sees every other.

    Raises:
        ModelFolderError: the backbone is not a complete folder, or has weights that are no numbers.
        AttentionDirectionError: an encoder that cannot be made causal.
    """
    config = check_backbone(backbone, bidirectional=bidirectional)
    kind = config.get("model_type")
    files = weight_files(backbone)
    _check_finite(files)
    tokenizer = load_tokenizer(backbone, set_ends=False)
    out.mkdir(parents=True, exist_ok=True)
    for path in (*files, *backbone.glob("*.index.json")):
        shutil.copy(path, out / path.name)
    for name in TOKENIZER_FILES:
        if (backbone / name).is_file():
            shutil.copy(backbone / name, out / name)
    if not (out / "tokenizer.json").is_file():
        tokenizer.save(str(out / "tokenizer.json"))  # of an older BERT, read from its vocab.txt
    config.pop("auto_map", None)  # code that is never run
    if kind in DECODERS:
        config |= {"is_causal": not bidirectional, "use_bidirectional_attention": bidirectional, "use_cache": False}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if kind in DECODERS:
        set_tokenizer_ends(out)


def check_backbone(backbone: Path, *, bidirectional: bool, lengths: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Configuration of a backbone that is complete, attends in this direction and has positions for texts so long.

    Of its weights only names, shapes and the sizes of the files are looked at.

    Args:
        backbone: folder of a model.
        bidirectional: whether every token is to see every other.
        lengths: tokens that are kept of texts, by the name of the setting that says so.

    Raises:
        ModelFolderError: configuration or weights are missing or damaged.
        AttentionDirectionError: an encoder that cannot be made causal.
        LengthError: more tokens than it has position embeddings for.
    """
    config = read_json(backbone / "config.json")
    kind = config.get("model_type")
    if kind not in DECODERS and not bidirectional:
        raise AttentionDirectionError(
            f"{backbone} is a {kind}, in which every token sees every other; set bidirectional, or pass a decoder."
        )
    if kind == "llama":
        check_llama_weights(backbone, config)
    else:
        for file in weight_files(backbone):
            tensor_shapes(file)
    most = most_tokens(config)
    for name, length in (lengths or {}).items():
        if most is not None and length > most:
            raise LengthError(
                f"{name}={length} is beyond the {most} positions that {backbone} has embeddings for; set it to at most "
                f"{most}."
            )
    return config


def _check_finite(files: Sequence[Path]) -> None:
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if not tensors.get_tensor(name).float().isfinite().all():
                    raise ModelFolderError(
                        f"{path}: tensor {name!r} holds values that are no finite numbers; train or fetch it again."
                    )


def set_tokenizer_ends(folder: Path) -> None:
    """Let the folder's tokenizer put BOS (where it has one, and is to) and EOS around every text, also a truncated one.

    A tokenizer without a padding token gets EOS as its padding, since every client pads.

    Raises:
        ModelFolderError: tokenizer.json is missing, there is no EOS, or it does not know the ends that the folder
            names.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing; pass a folder with its tokenizer.")
    tokenizer = Tokenizer.from_file(str(path))
    eos = put_ends(tokenizer, folder, needs_bos=False)
    tokenizer.save(str(path))
    named = read_json(folder / "tokenizer_config.json")
    if named.get("pad_token") is None:
        padded = named | {"pad_token": eos}
        (folder / "tokenizer_config.json").write_text(
            json.dumps(padded, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def encoder_tokenizer(backbone: Path, tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer that a start folder of this backbone will have; it neither pads nor cuts.

    Args:
        backbone: folder of a model.
        tokens: special tokens that it will be given.

    Raises:
        ModelFolderError: as `set_tokenizer_ends`, or a damaged file.
    """
    tokenizer = load_tokenizer(backbone, set_ends=False)
    if read_json(backbone / "config.json").get("model_type") in DECODERS:
        put_ends(tokenizer, backbone, needs_bos=False)
    _add_tokens(tokenizer, tokens)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def add_special_tokens(folder: Path, tokens: Sequence[str], *, seed: int) -> None:
    """Give the folder's tokenizer special tokens that it lacks, and the embedding a row for each.

    A row is drawn around the mean of all rows, with their deviation in each coordinate: under LoRA it stays as it is.

    Args:
        folder: a start folder, changed in place.
        tokens: such as `<instruct>`.
        seed: of the rows.
    """
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    _add_tokens(tokenizer, tokens)
    tokenizer.save(str(path))
    config = read_json(folder / "config.json")
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows <= config["vocab_size"]:
        return
    for file in weight_files(folder):
        state = load_file(file)
        name = next((key for key in state if key.endswith(EMBEDDING)), None)
        if name is not None:
            state[name] = _longer(state[name], rows, seed)
            save_file(state, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}, indent=2) + "\n", encoding="utf-8")


def _longer(table: Tensor, rows: int, seed: int) -> Tensor:
    """The table (V, D) with rows drawn behind it, (rows, D)."""
    known = table.float()
    noise = torch.randn(rows - len(table), table.shape[1], generator=torch.Generator().manual_seed(seed))
    return torch.cat([table, (known.mean(0) + known.std(0) * noise).to(table.dtype)])
