"""Documents packed into one sequence: kept apart, each reads as if it were alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.corpus import Corpus
from pruning.held_out import held_out_figures
from pruning.masked_model import MaskedCausalLM
from pruning.masks import Masks
from pruning.mixture import MixedSequences
from pruning.packing import IGNORED, packed, share_of_step
from pruning.shape import BackboneShape

BOS = 0
DOCUMENTS = [[41, 42, 1], [BOS, 50, 51, 52, 1], [BOS, 60, 1], [BOS, 61, 62]]  # the first began in the row before
ROW = np.array([token for document in DOCUMENTS for token in document], dtype=np.uint16)


def test_rows_as_one_text_predict_all_but_the_first_token() -> None:
    row = packed(ROW)
    assert set(row) == {"input_ids", "labels"}
    assert row["labels"].tolist() == [IGNORED, *ROW[1:].tolist()]


def test_documents_kept_apart_have_their_own_positions_and_labels() -> None:
    row = packed(ROW, BOS)
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert row["labels"].tolist() == [IGNORED, 42, 1, IGNORED, 50, 51, 52, 1, IGNORED, 60, 1, IGNORED, 61, 62]


def test_documents_that_end_with_their_first_token_are_kept_apart() -> None:
    """As in models whose BOS and EOS are one token."""
    documents = [[41, 42, BOS], [BOS, 50, 51, 52, BOS], [BOS, 60, BOS], [BOS, 61, 62]]
    row = packed(np.concatenate(documents), BOS)
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert row["labels"].tolist() == [IGNORED, 42, BOS, IGNORED, 50, 51, 52, BOS, IGNORED, 60, BOS, IGNORED, 61, 62]
    cut_between = packed(np.array([BOS, BOS, 60, 61]), BOS)
    assert cut_between["position_ids"].tolist() == [0, 0, 1, 2]
    assert cut_between["labels"].tolist() == [IGNORED, IGNORED, 60, 61]


def test_parts_of_a_step_share_it_by_their_predicted_tokens() -> None:
    labels = packed(ROW, BOS)["labels"].expand(2, -1)  # in each row 2, 4, 2 and 2 tokens are predicted: ten
    assert float(share_of_step(labels, 80)) == 0.25
    assert float(share_of_step(labels[:1, :8], 80)) == pytest.approx(6 / 80)
    assert share_of_step(labels, None) == 1.0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_document_sees_another(attention: str, masked: bool, llama_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, attn_implementation=attention).eval()
    source = BackboneShape.of(model.config)
    called = MaskedCausalLM(model, Masks(source, source), 0).eval() if masked else model
    row = packed(ROW, BOS)
    batch = {name: values[None].expand(2, -1) for name, values in row.items()}
    with torch.no_grad():
        together = called(**batch, use_cache=False)
        alone = [model(input_ids=torch.tensor([document])).logits[0] for document in DOCUMENTS]
    for line in together.logits:
        torch.testing.assert_close(line, torch.cat(alone), atol=1e-4, rtol=1e-4)
    losses = [
        torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(document[1:]), reduction="sum")
        for logits, document in zip(alone, DOCUMENTS, strict=True)
    ]
    predicted = sum(len(document) - 1 for document in DOCUMENTS)
    torch.testing.assert_close(together.loss, torch.stack(losses).sum() / predicted, atol=1e-4, rtol=1e-4)


def test_training_and_held_out_rows_are_kept_apart(llama_folder: Path, corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    assert corpus.bos_token_id == BOS
    data = MixedSequences(corpus, {}, 32, 4, seed=0, separate_documents=True)
    assert any((data[index]["position_ids"][1:] == 0).any() for index in range(4))
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    apart, joined = (
        held_out_figures(model, corpus, length=32, batch_size=3, limit=5, separate_documents=separate)["long"]
        for separate in (True, False)
    )
    assert apart["loss"] != joined["loss"]
    split = corpus.domains["long"]["held_out"]
    bits = apart["loss"] / np.log(2) * (split.tokens - split.documents) / split.text_bytes
    assert apart["bits_per_byte"] == pytest.approx(bits)
