"""Two processes, with DDP and with FSDP, take the steps of one process that reads both their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.pruning.logs import read_log

LEARN = {
    "steps": 8,
    "warmup_steps": 1,
    "sparsity_warmup_steps": 2,
    "mask_learning_rate": 2.0,  # far enough for gates to be clamped
    "multiplier_learning_rate": 2.0,
    "learning_rate": 1e-3,
    "target": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50},
}
RECOVER = {"steps": 4, "warmup_steps": 1, "learning_rate": 1e-3, "save_dtype": "float32"}
SHARED = {"sequence_length": 32, "log_every": 1, "held_out_sequences": 4, "precision": "fp32", "save_every": 4}
WAYS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"fsdp": True}}
GLOO = {"ddp_backend": "gloo"}


def train(command: str, recipe: dict[str, Any], folder: Path, *, processes: int, trainer: dict[str, Any]) -> Path:
    """Run a stage in new processes; the global batch is always four sequences."""
    out = folder / f"{command}-{processes}"
    settings = SHARED | recipe | {"out": str(out), "batch_size": 4 // processes}
    settings["trainer"] = {"use_cpu": True} | trainer
    path = folder / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    call = [sys.executable, *launcher, "-m", "pruning", command, str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"made {out}") == 1  # one process speaks
    return out


def recipe_of(command: str, llama: Path, corpus: Path) -> dict[str, Any]:
    return (LEARN if command == "learn-masks" else RECOVER) | {"model": str(llama), "corpus": str(corpus)}


@pytest.fixture(scope="module", params=["learn-masks", "recover"])
def alone(
    request: pytest.FixtureRequest, llama_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one process makes."""
    recipe = recipe_of(request.param, llama_folder, corpus_folder)
    return train(request.param, recipe, tmp_path_factory.mktemp("alone"), processes=1, trainer={})


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(
    way: str, alone: Path, llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    command = alone.name.rpartition("-")[0]
    recipe = recipe_of(command, llama_folder, corpus_folder)
    together = train(command, recipe, tmp_path, processes=2, trainer=GLOO | WAYS[way])
    logs = [read_log(folder) for folder in (alone, together)]
    assert len(logs[0]) == recipe["steps"]
    for one, two in zip(*logs, strict=True):
        for name in set(one) - {"elapsed_s"}:
            assert two[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name
    files = sorted(path.name for path in alone.glob("*.safetensors"))
    assert files == sorted(path.name for path in together.glob("*.safetensors"))
    for file in files:
        theirs = load_file(together / file)
        for name, tensor in load_file(alone / file).items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4, msg=f"{file} {name}")
            if "log_alpha" in name:
                assert theirs[name].abs().max() <= 4.6052  # gates stay in their range, also in the parts FSDP holds
