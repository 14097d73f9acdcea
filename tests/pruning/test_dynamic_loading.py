"""Dynamic batch loading: the rule, the order that follows from it, and a run that uses both and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from transformers import AutoModelForCausalLM

from drama_models.checkpoints import last_checkpoint
from drama_models.errors import CorpusError
from pruning.corpus import Corpus
from pruning.language_modelling import LanguageModelTrainer
from pruning.mixture import MixedSequences
from pruning.proportions import read_reference_losses, updated_proportions
from pruning.recover import RecoverRecipe, recover

UPDATES = "proportion_updates"


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    losses=st.lists(st.floats(0.5, 9), min_size=6, max_size=6),
    shift=st.floats(-2, 2),
)
def test_the_rule_is_the_closed_form(shares: list[float], losses: list[float], shift: float) -> None:
    proportions = np.array(shares) / sum(shares)
    count = len(proportions)
    reached, reference = np.array(losses[:count]), np.full(count, 2.0)
    found = updated_proportions(proportions.tolist(), reached.tolist(), reference.tolist())
    expected = (1 - 1e-4) * softmax(np.log(proportions) + reached - reference) + 1e-4 / count
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    # without clipping only differences between domains count
    shifted = updated_proportions(proportions.tolist(), (reached + shift).tolist(), reference.tolist())
    np.testing.assert_allclose(shifted, found, rtol=1e-4)


def test_clipping_keeps_domains_that_are_below_their_reference() -> None:
    losses, reference = [1.0, 1.5, 3.0], [2.0, 2.0, 2.0]
    clipped = updated_proportions([0.4, 0.4, 0.2], losses, reference, clip=True)
    assert clipped[0] == pytest.approx(clipped[1])
    plain = updated_proportions([0.4, 0.4, 0.2], losses, reference)
    assert plain[0] < plain[1]
    with pytest.raises(ValueError, match="choose from constant, doremi, bandit"):
        updated_proportions([1.0], [1.0], [1.0], update="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 proportions, 1 losses and 2 reference losses"):
        updated_proportions([0.5, 0.5], [1.0], [1.0, 1.0])


def test_a_redraw_goes_on_where_each_domain_was(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    total = len(corpus.sequences("short", "train", 32))
    data, untouched = (MixedSequences(corpus, {"long": 0.9, "short": 0.1}, 32, 40 * total, 3) for _ in range(2))
    start = 10 * total
    data.redraw(start, {"long": 0.1, "short": 0.9})
    np.testing.assert_array_equal(data.domain_of[:start], untouched.domain_of[:start])
    np.testing.assert_array_equal(data.row_of[:start], untouched.row_of[:start])
    assert data.domain_of[start:].mean() > 0.8  # domain 1 is short
    used = data.row_of[data.domain_of == 1]
    assert len(used) > 20 * total
    for first in range(0, len(used) - total, total):
        assert sorted(used[first : first + total]) == list(range(total))


def recipe_with(model: Path, corpus: Path, out: Path, **changes: Any) -> RecoverRecipe:
    settings: dict[str, Any] = {
        "steps": 12, "sequence_length": 32, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 2e-3,
        "log_every": 1, "save_every": 5, "held_out_sequences": 4, "precision": "fp32", "trainer": {"use_cpu": True},
        "update_proportions": "doremi", "update_every": 3, "save_dtype": "float32",
    }  # fmt: skip
    return RecoverRecipe(model=model, corpus=corpus, out=out, **(settings | changes))


@pytest.fixture
def reference_file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"long": 3.0, "short": 2.0}), encoding="utf-8")
    return path


class InterruptedRunError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def test_a_run_follows_the_rule_and_resumes_bit_exactly(
    llama_folder: Path, corpus_folder: Path, reference_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[list[int]]]] = {"whole": [], "cut": []}
    running = "whole"
    stock = LanguageModelTrainer.training_step

    def step(self: LanguageModelTrainer, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        if running == "cut" and self.state.global_step == 8 and not resumed:
            raise InterruptedRunError
        seen[running].append(inputs["input_ids"].tolist())
        return stock(self, model, inputs, *rest)

    monkeypatch.setattr(LanguageModelTrainer, "training_step", step)
    resumed = False
    whole = recover(recipe_with(llama_folder, corpus_folder, tmp_path / "whole", reference_losses=reference_file))[
        "figures"
    ]
    updates = whole[UPDATES]
    assert [update["step"] for update in updates] == [0, 3, 6, 9, 12]  # recovery: once before it trains
    before = {domain: figures["loss"] for domain, figures in whole["held_out_before"].items()}
    assert updates[0]["losses"] == pytest.approx(before, rel=1e-6)
    corpus = Corpus.open(corpus_folder)
    tokens = [corpus.domains[name]["train"].tokens for name in ("long", "short")]
    shares = [count / sum(tokens) for count in tokens]
    for update in updates:
        assert update["first_sequence"] == (min((update["step"] + 1) * 4, 48) if update["step"] else 0)
        shares = updated_proportions(shares, list(update["losses"].values()), [3.0, 2.0]).tolist()
        assert list(update["proportions"].values()) == pytest.approx(shares, rel=1e-9)

    running = "cut"
    recipe = recipe_with(llama_folder, corpus_folder, tmp_path / "cut", reference_losses=reference_file)
    with pytest.raises(InterruptedRunError):
        recover(recipe)
    kept = last_checkpoint(recipe.out)
    assert kept is not None
    assert kept.name == "checkpoint-5"
    resumed, seen["cut"] = True, []
    figures = recover(recipe)["figures"]
    assert seen["cut"] == seen["whole"][5 * 2 :]  # the same text, two parts a step
    assert figures[UPDATES] == updates
    assert figures["held_out"] == whole["held_out"]
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0, msg=name)


def test_the_text_that_is_read_follows_the_new_shares(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """A domain whose reference is far below its loss takes nearly all of what is read."""
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"long": 90.0, "short": 0.1}), encoding="utf-8")
    recipe = recipe_with(llama_folder, corpus_folder, tmp_path / "made", reference_losses=path, steps=20, save_every=50)
    figures = recover(recipe)["figures"]
    assert figures[UPDATES][0]["proportions"]["short"] > 0.999
    corpus = Corpus.open(corpus_folder)
    short_after_update = 20 * 4 / len(corpus.sequences("short", "train", 32))
    assert figures["epochs"]["short"] == pytest.approx(short_after_update, rel=0.3)


def test_reference_losses_that_do_not_fit_are_refused(
    llama_folder: Path, corpus_folder: Path, reference_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs reference_losses; make them with"):
        recipe_with(llama_folder, corpus_folder, tmp_path / "made")
    with pytest.raises(ValueError, match="leave dataloader_num_workers out of trainer"):
        recipe_with(
            llama_folder, corpus_folder, tmp_path / "made", reference_losses=reference_file,
            trainer={"dataloader_num_workers": 2},
        )  # fmt: skip
    assert read_reference_losses(reference_file, ["short"]) == {"short": 2.0}
    with pytest.raises(CorpusError, match="no reference loss for domain 'code'"):
        read_reference_losses(reference_file, ["code"])
    with pytest.raises(CorpusError, match="run `python -m pruning reference-loss`"):
        read_reference_losses(tmp_path / "none.json", ["short"])
    reference_file.write_text('{"long": NaN, "short": 1.0}', encoding="utf-8")
    with pytest.raises(CorpusError, match="must hold finite losses by domain"):
        read_reference_losses(reference_file, ["long", "short"])
    reference_file.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(CorpusError, match="must hold finite losses by domain"):
        read_reference_losses(reference_file, ["short"])
