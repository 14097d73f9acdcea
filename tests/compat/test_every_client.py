"""`python -m export verify` with the clients of both environments: `make compat`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drama_models.model_folder import read_json
from export.client_environments import CLIENTS, COMPAT_VARIABLE, all_environments
from export.to_onnx import write_onnx

ROOT = Path(__file__).parents[2]
OPTIONAL = ("transformers.js", "llama.cpp")  # there is not npm everywhere, nor the time to compile the other


@pytest.mark.skipif(COMPAT_VARIABLE not in os.environ, reason="needs the second environment that `make compat` makes")
def test_every_client_computes_our_vectors_on_200_texts(release_folder: Path, tmp_path: Path) -> None:
    release = Path(shutil.copytree(release_folder, tmp_path / "release"))
    write_onnx(release, "fp16")
    command = [sys.executable, "-m", "export", "verify", str(release)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    found = {entry["client"] for entry in read_json(release / "verification.json")["clients"]}
    here = all_environments()
    wanted = [
        client for client in CLIENTS if client.name not in OPTIONAL or any(place.version(client) for place in here)
    ]
    runs = [(client, ending) for client in wanted for ending in ("", ", model_fp16")[: 1 + client.graphs]]
    endings = {"": ""} | {client.without: f", without {client.without}" for client in wanted if client.without}
    assert found == {client.name + ending + endings[client.without] for client, ending in runs}
