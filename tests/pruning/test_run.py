"""The whole run by one command: stages that are done stay, and mistakes are answered in a sentence."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from drama_models.provenance import chain, read_provenance
from pruning.checkpoints import checkpoint_folder, checkpoints
from pruning.run import RunRecipe, run
from tests.conftest import make_llama

FEW: dict[str, Any] = {
    "steps": 2, "warmup_steps": 0, "batch_size": 2, "sequence_length": 32, "held_out_sequences": 2,
    "precision": "fp32", "trainer": {"use_cpu": True},
}  # fmt: skip


def write_recipe(path: Path, **changes: Any) -> Path:
    target = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50}
    learn = FEW | {"target": target, "sparsity_warmup_steps": 1}
    settings = {"expand_kv_heads": True, "force": True, "learn_masks": learn, "recover": FEW}
    path.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return path


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pruning", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_one_command_makes_a_backbone_and_goes_on(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "run.yaml"), tmp_path / "run"
    words = ["run", recipe, f"--model={llama_folder}", f"--corpus={corpus_folder}", f"--out={out}"]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    assert f"made {out / 'backbone'}: BackboneShape(hidden_size=32, num_layers=2, num_heads=4" in first.stdout
    model = AutoModelForCausalLM.from_pretrained(out / "backbone")
    assert (model.config.num_key_value_heads, model.config.hidden_size) == (4, 32)
    stages = [stage["stage"] for stage in chain(read_provenance(out / "backbone"))]
    assert stages == ["pruning.expand_kv_heads", "pruning.learn_masks", "pruning.slice", "pruning.recover"]
    (out / "backbone" / "provenance.json").rename(tmp_path / "gone")
    again = command(*words)
    assert [line for line in again.stderr.splitlines() if "done before" in line or "starts" in line] == [
        "expanded: done before", "masks: done before", "sliced: done before", "backbone: starts",
    ]  # fmt: skip
    other = command(*words, "--learn_masks.learning_rate=0.5")
    assert other.returncode == 2
    assert "masks was made with other settings (learning_rate=0.0001); remove it" in other.stderr


def test_a_multi_head_source_is_not_expanded(corpus_folder: Path, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", num_key_value_heads=6)
    settings = yaml.safe_load(write_recipe(tmp_path / "run.yaml").read_text(encoding="utf-8"))
    from drama_models.recipe import load_recipe

    assert settings["expand_kv_heads"]
    recipe = load_recipe(RunRecipe, tmp_path / "run.yaml", model=model, corpus=corpus_folder, out=tmp_path / "run")
    shape = run(recipe)
    assert (shape.num_heads, shape.num_kv_heads) == (4, 4)
    assert not (tmp_path / "run" / "expanded").exists()


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        (
            {"learn_masks": {"stepz": 3}},
            [],
            "line 4: RunRecipe has no field 'learn_masks.stepz'; did you mean 'steps'?",
        ),
        (
            {"learn_masks": {"target": {"num_layers": 9}}},
            [],
            "num_layers=9 cannot be cut from a source with num_layers=3",
        ),
        ({}, ["--corpus=nowhere"], "nowhere is not a tokenised corpus"),
    ],
)
def test_mistakes_are_answered(
    changes: dict[str, Any], words: list[str], message: str, llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", **({"expand_kv_heads": False} | changes))
    folders = [f"--model={llama_folder}", f"--corpus={corpus_folder}", f"--out={tmp_path / 'run'}"]
    result = command("run", recipe, *folders, *words)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the same places, for every user."""
    weights = (llama_folder / "model.safetensors").stat().st_size
    settings = FEW | {"steps": 4, "save_every": 2, "model": str(llama_folder), "corpus": str(corpus_folder)}
    recipe, out = tmp_path / "recover.yaml", tmp_path / "made"
    recipe.write_text(yaml.safe_dump(settings | {"out": str(out)}), encoding="utf-8")

    def limited(size: int) -> Any:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (weights // 2, weights + weights // 2):  # the weights of a checkpoint do not fit; then Adam's state
        result = command("recover", recipe, preexec_fn=limited(size))
        assert result.returncode == 2, result.stderr
        assert "no room left on the disk" in result.stderr
        assert "Traceback" not in result.stderr
        assert not out.exists()
        assert checkpoints(out) == []
    assert command("recover", recipe).returncode == 0
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 48
    assert not checkpoint_folder(out).exists()
