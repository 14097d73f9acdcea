"""A model in the shape of drama-base with random weights, and texts to encode with it, for benchmarks of speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCE = Path(__file__).parents[1] / "demo" / "source"  # its tokenizer
SHAPE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
    "intermediate_size": 3072, "vocab_size": 128_256,
}  # fmt: skip
MAX_LENGTH = 512
QUERY_PROMPT = "Query: "
QUERY_TOKENS = range(9, 17)  # of what people type, with the prompt and both ends


def write_model(folder: Path, shape: Mapping[str, Any] = SHAPE, max_length: int = MAX_LENGTH) -> None:
    """`model` in a folder: random weights, bidirectional, mean pooling, laid out like a trained retriever."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    from drama_models.profile import Profile
    from export.client_files import sentence_transformers_files
    from training.start import write_start_folder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    tokenizer.model_max_length = max_length
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    positions = {"max_position_embeddings": max_length, "pad_token_id": tokenizer.pad_token_id}
    LlamaModel(LlamaConfig(**shape, **ends, **positions)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    model = folder / "model"
    write_start_folder(folder / "llama", model, bidirectional=True)
    profile = Profile(
        hidden_size=shape["hidden_size"],
        bidirectional=True,
        pooling="mean",
        query_prompt=QUERY_PROMPT,
        document_prompt="",
        set_ends=False,
        max_length=max_length,
        normalise=True,
        dims=(),
    )
    for name, content in sentence_transformers_files(profile).items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps(content), encoding="utf-8")


def sample_texts(count: int) -> list[str]:
    """Docstrings of the standard library, drawn with a fixed seed."""
    from demo.environment import STANDARD_LIBRARY, installed_packages
    from demo.public_names import public_entries, read_package

    library = next(package for package in installed_packages() if package.name == STANDARD_LIBRARY)
    entries = public_entries(read_package(library.root / "email", "email"))
    for name in ("asyncio", "json", "logging", "unittest", "xml", "importlib", "concurrent", "http", "urllib"):
        entries += public_entries(read_package(library.root / name, name))
    texts = [entry.docstring for entry in entries]
    chosen = np.random.default_rng(0).choice(len(texts), count, replace=count > len(texts))
    return [texts[number] for number in chosen]


def query_texts(folder: Path, lengths: Sequence[int] = QUERY_TOKENS, count: int = len(QUERY_TOKENS)) -> list[str]:
    """Beginnings of docstrings that a folder's tokenizer cuts into so many tokens, prompt and ends included.

    Args:
        folder: of `write_model`.
        lengths: in tokens, taken in turn.
        count: of texts.

    Raises:
        ValueError: no docstrings are left for a length.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: list[str] = []
    for text in sample_texts(64 * count):
        if len(found) == count:
            break
        wanted, words = lengths[len(found) % len(lengths)], text.split()
        starts = (" ".join(words[:number]) for number in range(1, min(len(words), wanted) + 1))
        fitting = (start for start in starts if len(tokenizer.encode(QUERY_PROMPT + start).ids) == wanted)
        found += list(fitting)[:1]
    if len(found) < count:
        raise ValueError(f"{len(found)} of {count} queries of {list(lengths)} tokens could be made.")
    return found
