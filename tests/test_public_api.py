"""What `import drama_models` offers and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import drama_models

HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "onnxruntime", "faiss", "scipy", "pandas"}
NAMES = ["BM25", "Collection", "DramaModel", "Encoder", "Index", "Profile", "Retriever", "evaluate"]


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in `sys.modules` of a fresh process after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_public_names_are_these() -> None:
    assert drama_models.__all__ == NAMES
    assert dir(drama_models) == sorted(NAMES)
    for name in NAMES:
        assert getattr(drama_models, name).__module__.startswith("drama_models.")


def test_a_name_that_needs_an_extra_says_which() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom drama_models import DramaModel"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DramaModel needs packages that are not installed: pip install 'drama-models[torch]'." in result.stderr


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_after("import drama_models") & HEAVY


def test_encoder_class_loads_no_torch() -> None:
    loaded = loaded_after("from drama_models import Encoder, Index, Retriever, Collection, Profile")
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "transformers", "sentence_transformers"}


def test_command_line_loads_no_torch() -> None:
    assert not loaded_after("import drama_models.cli") & {"torch", "transformers", "sentence_transformers"}


def test_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="choose one of: BM25, Collection"):
        drama_models.Searcher  # noqa: B018
