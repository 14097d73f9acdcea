"""A release in an environment with transformers 4.57 and sentence-transformers 5.1: `make compat`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from drama_models import Encoder
from drama_models.sample_texts import SAMPLE_TEXTS
from tests.conftest import TEXTS

SCRIPT = Path(__file__).parent / "remote_code.py"
PYTHON = os.environ.get("COMPAT_PYTHON")


@pytest.mark.skipif(PYTHON is None, reason="needs the second environment that `make compat` makes")
def test_remote_code_on_transformers_4_equals_our_encoder(release_folder: Path, tmp_path: Path) -> None:
    assert PYTHON is not None
    texts = [*SAMPLE_TEXTS, *TEXTS[:12]]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    target = tmp_path / "found.npz"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}  # where transformers copies a folder's code to
    command = [PYTHON, str(SCRIPT), str(release_folder), str(tmp_path / "texts.json"), str(target)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr

    found = np.load(target, allow_pickle=False)
    transformers, sentence_transformers = found["versions"]
    assert transformers.startswith("4.")
    assert sentence_transformers.startswith("5.")
    assert found["model_class"] == "DramaModel"
    encoder = Encoder.from_pretrained(release_folder, runtime="torch")
    documents = encoder.encode_documents(texts)
    for name in ("by_class", "eager", "sdpa", "sentence_transformers"):
        assert (found[name] * documents).sum(axis=1).min() >= 0.9999, name
    assert (found["queries"] * encoder.encode_queries(texts)).sum(axis=1).min() >= 0.9999
