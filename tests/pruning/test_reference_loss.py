"""Reference losses: the power law against curves that obey it, the table of a model against the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from drama_models.errors import CorpusError
from pruning.corpus import Corpus
from pruning.held_out import held_out_figures
from pruning.reference_loss import ReferenceLossRecipe, reference_losses
from pruning.scaling_law import extrapolated_loss

SIZES = [1_235_814_400, 3_212_749_824, 8_030_261_248, 70_553_706_496]


@given(exponent=st.floats(0.05, 1.5), floor=st.floats(0.1, 2.0), drop=st.floats(0.2, 2.0), models=st.integers(3, 4))
def test_a_curve_that_is_a_power_law_is_continued(exponent: float, floor: float, drop: float, models: int) -> None:
    def law(size: float) -> float:
        return drop * (size / SIZES[0]) ** -exponent + floor

    found = extrapolated_loss({size: law(size) for size in SIZES[:models]}, 373_867_520)
    assert found == pytest.approx(law(373_867_520), rel=2e-3)


def test_curves_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(CorpusError, match="at least 3 models, found 2"):
        extrapolated_loss({10: 3.0, 20: 2.0}, 5)
    with pytest.raises(CorpusError, match="do not fall with size"):
        extrapolated_loss({10: 3.0, 20: 3.1, 40: 2.0}, 5)
    with pytest.raises(CorpusError, match="must be positive"):
        extrapolated_loss({10: 3.0, 20: 2.0, 40: 1.0}, 0)


def test_the_table_of_a_model_is_its_held_out_loss(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "reference.json"
    recipe = ReferenceLossRecipe(
        model=llama_folder, corpus=corpus_folder, out=out, sequence_length=32, batch_size=2, held_out_sequences=4
    )
    losses = reference_losses(recipe)
    assert json.loads(out.read_text(encoding="utf-8")) == losses
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    figures = held_out_figures(model, Corpus.open(corpus_folder), length=32, batch_size=4, limit=4)
    assert losses == pytest.approx({domain: values["loss"] for domain, values in figures.items()}, rel=1e-5)


def test_the_command_reads_a_curve(tmp_path: Path) -> None:
    curve = tmp_path / "curve.yaml"
    curve.write_text(yaml.safe_dump({"en": {size: 3.0 * (size / 1e9) ** -0.3 + 1 for size in SIZES}}), encoding="utf-8")
    words = ["reference-loss", "--curve", str(curve), "--target_size", "1000000000", "--out", str(tmp_path / "r.json")]
    result = subprocess.run([sys.executable, "-m", "pruning", *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "en 4.000" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["en"] == pytest.approx(4.0, rel=1e-3)
    curve.write_text("en: 3", encoding="utf-8")
    result = subprocess.run([sys.executable, "-m", "pruning", *words], capture_output=True, text=True)
    assert result.returncode == 2
    assert "must hold, for every domain, losses by number of parameters" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_way_has_to_be_chosen(tmp_path: Path) -> None:
    given_alone: list[dict[str, Any]] = [{}, {"model": tmp_path}, {"curve": tmp_path / "c.yaml"}]
    for settings in given_alone:
        with pytest.raises(ValueError, match="either model and corpus, or curve and target_size"):
            ReferenceLossRecipe(out=tmp_path / "r.json", **settings)
