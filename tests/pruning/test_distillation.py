"""Logit distillation against the divergence written out, and in a recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from drama_models.errors import CorpusError, ModelFolderError
from pruning.distillation import distillation_loss
from pruning.packing import IGNORED
from pruning.recover import RecoverRecipe, recover
from tests.conftest import make_llama
from tests.pruning.logs import read_log
from tests.pruning.test_stages import SMALL


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_divergence_of_the_predicted_tokens(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 700, 13, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    labels = torch.randint(0, 13, (2, 700), generator=generator)
    labels[0, 5:20] = IGNORED
    total, count = 0.0, 0
    for row in range(2):
        for place in range(699):
            if labels[row, place + 1] != IGNORED:
                p = (teacher[row, place] / temperature).softmax(0)
                q = (student[row, place] / temperature).softmax(0)
                total += float((p * (p / q).log()).sum())
                count += 1
    expected = temperature**2 * total / count
    assert distillation_loss(student, teacher, labels, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, labels).item() == pytest.approx(0, abs=1e-6)


def recipe(model: Path, corpus: Path, out: Path, **changes: object) -> RecoverRecipe:
    few: dict[str, Any] = {"steps": 6, "learning_rate": 2e-3, "warmup_steps": 0, "log_every": 1, "save_every": 100}
    return RecoverRecipe(model=model, corpus=corpus, out=out, **(SMALL | few | changes))


def test_recovery_can_learn_a_teachers_logits(corpus_folder: Path, tmp_path: Path) -> None:
    teacher, student = make_llama(tmp_path / "teacher", seed=1), make_llama(tmp_path / "student", seed=2)
    rows = torch.randint(3, 300, (4, 16), generator=torch.Generator().manual_seed(0))

    def distance(folder: Path) -> float:
        with torch.no_grad():
            logits = [AutoModelForCausalLM.from_pretrained(path)(input_ids=rows).logits for path in (folder, teacher)]
        return distillation_loss(logits[0], logits[1], rows).item()

    before = distance(student)
    settings = {"distillation_weight": 1.0, "teacher": teacher, "save_dtype": "float32", "steps": 30}
    record = recover(recipe(student, corpus_folder, tmp_path / "made", **settings))
    assert distance(tmp_path / "made") < 0.9 * before
    assert set(record["inputs"]) == {"model", "corpus", "teacher"}
    losses = []
    for parts in (1, 2):
        out = tmp_path / f"parts{parts}"
        recover(recipe(student, corpus_folder, out, teacher=teacher, gradient_accumulation=parts))
        losses.append([line["loss"] for line in read_log(out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_teacher_that_does_not_fit_is_refused(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    wide = make_llama(tmp_path / "wide", vocab_size=512)
    with pytest.raises(ModelFolderError, match=r"has 512 logits, .* use the model that was pruned"):
        recover(recipe(llama_folder, corpus_folder, tmp_path / "made", teacher=wide))
    other = make_llama(tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(CorpusError, match="another tokenizer"):
        recover(recipe(llama_folder, corpus_folder, tmp_path / "made", teacher=other))
    with pytest.raises(ValueError, match=r"distillation_weight=1\.5 must be between 0 and 1"):
        recipe(llama_folder, corpus_folder, tmp_path / "made", distillation_weight=1.5)
