"""The baselines that the source model is held against, and the card that says so."""

from __future__ import annotations

import json
import lzma
import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import Tokenizer

from demo.source_baselines import trigram_bits, unigram_bits, xz_bytes
from demo.source_card import write_source_card
from demo.stages import SOURCE
from drama_models.model_folder import read_json
from drama_models.provenance import read_provenance

if TYPE_CHECKING:
    from pathlib import Path


def test_unigram_of_even_counts_is_the_logarithm_of_the_vocabulary() -> None:
    train = np.tile(np.arange(8), 100)
    assert unigram_bits(train, np.array([1, 5, 7]), 8) == pytest.approx(3 * math.log2(8))


def test_trigram_probabilities_sum_to_one() -> None:
    generator = np.random.default_rng(0)
    train = generator.integers(0, 5, 400)
    context = [3, 1]
    start = trigram_bits(train, np.array(context), 5)
    total = sum(2 ** -(trigram_bits(train, np.array([*context, last]), 5) - start) for last in range(5))
    assert total == pytest.approx(1.0)


def test_trigram_learns_what_a_unigram_cannot() -> None:
    train = np.tile([0, 1, 2, 3], 500)
    held_out = np.tile([0, 1, 2, 3], 20)
    assert trigram_bits(train, held_out, 4) < 0.1 * unigram_bits(train, held_out, 4)


def test_xz_counts_only_what_the_held_out_text_adds(tmp_path: Path) -> None:
    noise = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 4000)))
    for name, text in (("train", noise), ("held_out", noise)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    alone = len(lzma.compress(noise.encode(), preset=9 | lzma.PRESET_EXTREME))
    assert xz_bytes(tmp_path) < 0.05 * alone


def test_the_shipped_model_beats_every_baseline_on_text() -> None:
    figures = (read_provenance(SOURCE) or {})["figures"]
    for domain, found in figures["held_out"].items():
        for name, bits in figures["baselines_bits_per_byte"][domain].items():
            assert found["bits_per_byte"] < bits, (domain, name)


def test_the_shipped_figures_are_measured_on_the_shipped_weights() -> None:
    """A few sentences in the manner of the training text cost about what the card says, and scrambled ones far more."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32),
        AutoTokenizer.from_pretrained(SOURCE),
    )
    text = "Return the sum of the array elements over a given axis.\n\nParameters\n----------\naxis : int, optional\n"
    losses = []
    for given in (text, " ".join(sorted(text.split()))):
        ids = tokenizer(given, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(
                model(input_ids=ids, labels=ids).loss.item() * ids.shape[1] / math.log(2) / len(given.encode())
            )
    plain, scrambled = losses
    said = (read_provenance(SOURCE) or {})["figures"]["held_out"]["docstrings"]["bits_per_byte"]
    assert plain < 1.5 * said
    assert scrambled > 2 * plain


def test_the_tokenizer_round_trips_any_text() -> None:
    tokenizer = Tokenizer.from_file(str(SOURCE / "tokenizer.json"))
    for text in ("naïve café", "数据框 🚀", "tab\tline\r\n", "\u202eright to left", "\x00"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_the_card_is_the_one_that_the_provenance_gives(tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "source"
    shutil.copytree(SOURCE, copy)
    (copy / "README.md").unlink()
    write_source_card(copy)
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert card == (SOURCE / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"\{\w+", card)
    assert f"{read_json(SOURCE / 'config.json')['num_hidden_layers']} layers" in card
