"""Tiny cross-encoders with random weights, as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 1,
    "initializer_range": 0.5,
}  # fmt: skip


def write_cross_encoder(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A BERT with one score, other weights for every seed; one that is in the folder is replaced."""
    with torch.random.fork_rng(), TemporaryDirectory() as parts:
        torch.manual_seed(seed)
        BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **(SIZES | config))).save_pretrained(parts)
        BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(parts)
        CrossEncoder(parts, device="cpu").save_pretrained(str(folder))
    return folder
