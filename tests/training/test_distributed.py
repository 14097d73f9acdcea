"""A training of two gloo processes under torchrun, against one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from drama_models.model_folder import WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [{}, {"two_encoders": True, "lora": {"rank": 4, "dropout": 0.0}}])
def test_two_processes_train_the_model_of_one(
    encoder: dict[str, Any],
    llama_folder: Path,
    collection_folder: Path,
    examples_file: Path,
    tmp_path: Path,
) -> None:
    dataset = {
        "name": "topics", "task": "retrieval", "collection": str(collection_folder), "examples": str(examples_file),
    }  # fmt: skip
    settings = {
        "backbone": str(llama_folder), "datasets": [dataset], "encoder": {"max_length": 32} | encoder,
        "objective": {"dims": [48, 16]}, "steps": 5, "batch_size": 8, "negatives": 1, "chunk_tokens": 60,
        "learning_rate": 1e-3, "warmup_steps": 1, "log_every": 1, "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    logs, weights = [], []
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, "-m", "training", "train", str(recipe), f"--out={tmp_path / name}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append([[json.loads(line)[key] for key in ("step", "loss", "grad_norm")] for line in lines])
        files = {path.relative_to(tmp_path / name): load_file(path) for path in (tmp_path / name).rglob(WEIGHTS)}
        weights.append({f"{path} {key}": tensor for path, file in files.items() for key, tensor in file.items()})
    assert len(logs[0]) == 5
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert weights[0].keys() == weights[1].keys()
    assert len({name.partition(" ")[0] for name in weights[0]}) == 1 + bool(encoder)  # a file for each encoder
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-4, msg=name)
