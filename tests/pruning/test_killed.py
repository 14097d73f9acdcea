"""Runs killed with SIGKILL, at chosen steps and in the middle of writing, against a run that was left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from drama_models.checkpoints import checkpoint_folder, log_file
from tests.processes import finish, kill_when, start

SHARED: dict[str, Any] = {
    "steps": 10, "warmup_steps": 2, "sequence_length": 32, "batch_size": 2, "learning_rate": 1e-3, "log_every": 3,
    "save_every": 2, "held_out_sequences": 2, "precision": "fp32", "update_proportions": "doremi", "update_every": 3,
    "trainer": {"use_cpu": True},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "learn-masks": {
        "sparsity_warmup_steps": 4,
        "target": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50},
    },
    "learn-masks from importance": {
        "sparsity_warmup_steps": 0,
        "target": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50},
        "importance": {"sequences": 4, "layer_sequences": 2, "sequence_length": 32},
    },
    "recover": {"save_dtype": "float32"},
}


def complete(checkpoint: Path) -> bool:
    return {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "proportions.json"} <= {
        path.name for path in checkpoint.iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_as_if_left_alone(
    stage: str, llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "reference.json").write_text(json.dumps({"long": 6.0, "short": 5.0}), encoding="utf-8")
    folders = {"model": llama_folder, "corpus": corpus_folder, "reference_losses": tmp_path / "reference.json"}
    recipe = tmp_path / "recipe.yaml"
    settings = SHARED | STAGES[stage] | {name: str(path) for name, path in folders.items()}
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start("pruning", stage.split()[0], str(recipe), f"--out={whole}"))

    def at_step(step: int) -> bool:
        log = log_file(cut)
        return log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8")

    def writing() -> bool:
        return (checkpoint_folder(cut) / ".writing" / "checkpoint-6").is_dir()

    for happened in (lambda: at_step(3), writing, lambda: at_step(9)):
        kill_when(start("pruning", stage.split()[0], str(recipe), f"--out={cut}"), happened)
        assert not cut.exists()
        kept = sorted(checkpoint_folder(cut).glob("checkpoint-*"))
        assert len(kept) <= 2
        assert all(complete(folder) for folder in kept)
    finish(start("pruning", stage.split()[0], str(recipe), f"--out={cut}"))
    lines = [
        [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (whole, cut)
    ]
    for line in (*lines[0], *lines[1]):
        line.pop("elapsed_s")
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 3, 4, 6, 8, 9, 10]  # every third, and every checkpoint
    figures = [
        json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["figures"] for folder in (whole, cut)
    ]
    assert figures[0]["proportion_updates"]
    assert figures[0] == figures[1]
    for file in sorted(whole.glob("*.safetensors")):
        theirs = load_file(cut / file.name)
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, msg=f"{file.name} {name}")


def test_other_settings_do_not_go_on_with_an_interrupted_run(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    settings = SHARED | {"model": str(llama_folder), "corpus": str(corpus_folder), "update_proportions": "constant"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    out = tmp_path / "made"
    kill_when(
        start("pruning", "recover", str(recipe), f"--out={out}"),
        lambda: bool(list(checkpoint_folder(out).glob("checkpoint-*"))),
    )
    other = start("pruning", "recover", str(recipe), f"--out={out}", "--learning_rate=0.01")
    assert "holds an interrupted run with other settings (learning_rate=0.001); set them back" in other.communicate()[1]
    assert other.returncode == 2
    finish(start("pruning", "recover", str(recipe), f"--out={out}", "--save_every=5"))
