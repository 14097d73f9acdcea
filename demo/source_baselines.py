"""Bits per byte of things that are not language models: what the source model has to beat on the same held-out text.

Unigram and trigram are token models with absolute counts from the training text; xz compresses the held-out text after
having seen as much training text as its window holds.
"""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import numpy as np

from pruning.corpus import Corpus
from pruning.documents import read_documents

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

XZ_PRIMER_BYTES = 32 << 20


def baseline_bits_per_byte(text: Path, corpus_folder: Path, vocabulary: int) -> dict[str, dict[str, float]]:
    """Bits per byte of unigram, trigram and xz on each domain's held-out text.

    Args:
        text: folder of text domains.
        corpus_folder: the same text, tokenised.
        vocabulary: number of token ids.
    """
    corpus = Corpus.open(corpus_folder)
    figures = {}
    for domain, splits in corpus.domains.items():
        train = np.fromfile(corpus.folder / domain / "train.bin", dtype=corpus.dtype).astype(np.int64)
        held_out = np.fromfile(corpus.folder / domain / "held_out.bin", dtype=corpus.dtype).astype(np.int64)
        size = splits["held_out"].text_bytes
        figures[domain] = {
            "unigram": unigram_bits(train, held_out, vocabulary) / size,
            "trigram": trigram_bits(train, held_out, vocabulary) / size,
            "xz": 8 * xz_bytes(text / domain) / size,
        }
    return figures


def unigram_bits(train: NDArray[np.int64], held_out: NDArray[np.int64], vocabulary: int) -> float:
    """Bits for the held-out tokens, shape (n,), under their frequency in the training tokens plus one."""
    counts = np.bincount(train, minlength=vocabulary) + 1
    return float(-np.log2(counts[held_out] / counts.sum()).sum())


def trigram_bits(train: NDArray[np.int64], held_out: NDArray[np.int64], vocabulary: int) -> float:
    """Bits under a trigram model with Witten-Bell interpolation down to the unigram, tokens of shape (n,)."""
    probability = (np.bincount(train, minlength=vocabulary) + 1)[held_out] / (len(train) + vocabulary)
    for order in (2, 3):
        keys, contexts = _grams(train, order, vocabulary), _grams(train, order, vocabulary) // vocabulary
        gram, gram_count = np.unique(keys, return_counts=True)
        context, context_count = np.unique(contexts, return_counts=True)
        _, followers = np.unique(gram // vocabulary, return_counts=True)  # distinct tokens seen after each context
        wanted = _grams(held_out, order, vocabulary)
        seen = _lookup(gram, gram_count, wanted)
        total = _lookup(context, context_count, wanted // vocabulary)
        types = _lookup(context, followers, wanted // vocabulary)
        lower = probability[order - 1 :]
        mixed = np.where(total > 0, (seen + types * lower) / np.maximum(total + types, 1), lower)
        probability = np.concatenate([probability[: order - 1], mixed])
    return float(-np.log2(probability).sum())


def xz_bytes(folder: Path) -> int:
    """Bytes that the held-out text adds to the training text's end when both are compressed together."""
    train = "\n".join(read_documents(folder / "train.jsonl")).encode()[-XZ_PRIMER_BYTES:]
    held_out = "\n".join(read_documents(folder / "held_out.jsonl")).encode()
    preset = 9 | lzma.PRESET_EXTREME
    return len(lzma.compress(train + held_out, preset=preset)) - len(lzma.compress(train, preset=preset))


def _grams(tokens: NDArray[np.int64], order: int, vocabulary: int) -> NDArray[np.int64]:
    """Each run of `order` tokens as one number, shape (n - order + 1,)."""
    keys = np.zeros(len(tokens) - order + 1, dtype=np.int64)
    for offset in range(order):
        keys = keys * vocabulary + tokens[offset : offset + len(keys)]
    return keys


def _lookup(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Value of each wanted key among sorted keys, 0 where it is absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
