"""The starting point of training: a backbone folder laid out as an encoder.

Attention direction and tokenizer ends are properties of a folder here, not of the code that loads it, so the retriever
is an encoder from its first step on: `is_causal: false`, BOS and EOS around every text, mean pooling.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from drama_models.errors import ModelFolderError
from drama_models.model_folder import check_llama_weights, read_json, weight_files

PROMPTS = {"query": "Query: ", "document": ""}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_start_folder(backbone: Path, out: Path, *, bidirectional: bool) -> None:
    """Copy a Llama folder and make it an encoder: attention direction in its configuration, ends in its tokenizer.

    Raises:
        ModelFolderError: the backbone is not a complete Llama folder.
    """
    config = read_json(backbone / "config.json")
    if config.get("model_type") != "llama":
        raise ModelFolderError(f"{backbone} is a {config.get('model_type')}; pass the folder of a Llama.")
    check_llama_weights(backbone, config)
    out.mkdir(parents=True)
    for path in (*weight_files(backbone), *backbone.glob("*.index.json")):
        shutil.copy(path, out / path.name)
    config |= {"is_causal": not bidirectional, "use_bidirectional_attention": bidirectional, "use_cache": False}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (backbone / name).is_file():
            shutil.copy(backbone / name, out / name)
    set_tokenizer_ends(out)


def set_tokenizer_ends(folder: Path) -> None:
    """Let the folder's tokenizer put BOS and EOS around every text, also a truncated one.

    Raises:
        ModelFolderError: tokenizer.json is missing, or does not know the BOS and EOS of tokenizer_config.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing; pass a folder with its tokenizer.")
    named = read_json(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(path))
    ends = [
        token["content"] if isinstance(token, dict) else token for token in (named["bos_token"], named["eos_token"])
    ]
    numbers = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(ends)]
    if any(number is None for _, number in numbers):
        raise ModelFolderError(f"{path} does not know the ends {ends} of tokenizer_config.json; fix one of the two.")
    tokenizer.post_processor = TemplateProcessing(single=[ends[0], "$A", ends[1]], special_tokens=numbers)
    tokenizer.save(str(path))


def load_start(
    folder: Path, *, max_length: int, pooling: Literal["mean", "last"], device: str | None
) -> SentenceTransformer:
    """The encoder of a start folder as sentence-transformers modules: transformer, pooling, normalisation.

    Args:
        folder: made by `write_start_folder`.
        max_length: tokens kept of each text, BOS and EOS included.
        pooling: of the last hidden states.
        device: such as "cuda"; the best there is by default.
    """
    # float32 weights whatever the backbone was stored in: optimiser steps vanish in bfloat16, autocast does the rest
    settings = {"model_kwargs": {"dtype": torch.float32}}
    transformer = Transformer(str(folder), max_seq_length=max_length, **settings)
    pooled = Pooling(transformer.get_embedding_dimension(), "mean" if pooling == "mean" else "lasttoken")
    return SentenceTransformer(modules=[transformer, pooled, Normalize()], prompts=PROMPTS, device=device)
