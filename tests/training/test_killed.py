"""A training killed with SIGKILL, between steps and in the middle of writing, against one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from drama_models.checkpoints import checkpoint_folder, log_file
from drama_models.collection import Collection
from drama_models.evaluation import write_run
from tests.processes import finish, kill_when, start


def write_teachers(collection: Path, folder: Path) -> list[dict[str, str]]:
    """Two runs of the collection's queries, one the other way round."""
    names = [document.id for document in Collection(collection).documents()]
    for teacher, order in (("first", names), ("second", names[::-1])):
        run = {
            query: {key: float(-rank) for rank, key in enumerate([*order[12 * place :], *order[: 12 * place]][:20])}
            for place, query in enumerate(Collection(collection).queries())
        }
        write_run(folder / f"{teacher}.run", run)
    return [{"name": name, "run": str(folder / f"{name}.run")} for name in ("first", "second")]


@pytest.mark.slow
def test_a_killed_training_ends_as_if_left_alone(
    llama_folder: Path, collection_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    places = {"collection": str(collection_folder), "task": "retrieval"}
    settings = {
        "backbone": str(llama_folder),
        "datasets": [
            {"name": "topics", "examples": str(examples_file), "weight": 2} | places,
            {
                "name": "ranked", "weight": 1, "batch_size": 4, "teachers": write_teachers(collection_folder, tmp_path),
                "supervision": {"kind": "progressive", "steps_per_iteration": 7},
                "windows": {"k": 20, "positives": 10, "negatives": 10},
            } | places,
        ],
        "encoder": {"max_length": 32, "two_encoders": True, "lora": {"rank": 4, "dropout": 0.1}},
        "objective": {"dims": [48, 16]},
        "steps": 16, "batch_size": 8, "negatives": 1, "chunk_tokens": 100, "learning_rate": 1e-3, "warmup_steps": 2,
        "log_every": 3, "save_every": 2, "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start("training", "train", str(recipe), f"--out={whole}"))

    def at_step(step: int) -> bool:
        log = log_file(cut)
        return log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8")

    def writing() -> bool:
        return (checkpoint_folder(cut) / ".writing" / "checkpoint-8").is_dir()

    # an epoch has 14 steps, and the second teacher joins at step 7
    for happened in (lambda: at_step(3), writing, lambda: at_step(14)):
        kill_when(start("training", "train", str(recipe), f"--out={cut}"), happened, timeout_s=300)
        assert not cut.exists()
        assert len(list(checkpoint_folder(cut).glob("checkpoint-*"))) <= 2
    finish(start("training", "train", str(recipe), f"--out={cut}"))
    lines = [
        [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (whole, cut)
    ]
    for line in (*lines[0], *lines[1]):
        line.pop("elapsed_s")
    assert lines[0] == lines[1]
    assert lines[0][-1]["step"] == 16
    assert [line["learning_rate"] for line in lines[0] if line["step"] in (8, 9)] == [0, 5e-4]  # begun anew
    written = [path.relative_to(whole) for path in sorted(whole.rglob("model.safetensors"))]
    assert len(written) == 2
    for path in written:
        theirs = load_file(cut / path)
        for name, tensor in load_file(whole / path).items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, msg=f"{path}: {name}")
