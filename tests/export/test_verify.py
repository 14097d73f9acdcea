"""What clients are compared on, where they are looked for, and what counts as agreement."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import regex

from drama_models.model_folder import read_json
from export.client_environments import CLIENTS, NODE_PACKAGE, Client, Environment, all_environments, this_environment
from export.parity_texts import SENTENCES, parity_texts
from export.verify import INT8_MIN_COSINE, MIN_COSINE, Parity, check, compare, padded_and_alone

SCRIPT_PATTERNS = {name: regex.compile(rf"\p{{{name}}}") for name in SENTENCES if name != "Kana"}
SCRIPT_PATTERNS["Kana"] = regex.compile(r"[\p{Hiragana}\p{Katakana}]")


def test_texts_are_200_in_twelve_scripts_from_nothing_to_beyond_the_maximum() -> None:
    texts = parity_texts(64)
    assert texts == parity_texts(64)
    assert (len(texts), len(set(texts)), min(map(len, texts))) == (200, 200, 0)
    assert len(texts[-1].split()) == 64
    assert len(SCRIPT_PATTERNS) == 12
    for name, pattern in SCRIPT_PATTERNS.items():
        assert sum(bool(pattern.search(text)) for text in texts) >= 15, name
    lengths = sorted(map(len, texts))
    assert lengths[100] > 4 * lengths[10] > 0


def test_short_texts_are_padded_together_and_long_ones_alone() -> None:
    lengths = [0, 5, 600, 7, 512, 513, *[3] * 20]
    batches = padded_and_alone(lengths)
    together = [position for batch in batches if len(batch) > 1 for position in batch]
    assert together == [position for position, length in enumerate(lengths) if length <= 512]
    assert max(map(len, batches)) == 8
    alone = {batch[0] for batch in batches if len(batch) == 1}
    assert {2, 5} < alone
    assert len(alone) == 2 + 5


def test_a_client_is_found_where_all_that_it_needs_fits() -> None:
    client = Client(name="new", script="new.py", needs={"transformers": ">=5.2", "torch": ""})
    found = {"transformers": "5.23.0", "torch": "2.13.0+cpu"}
    assert Environment(("python",), found).version(client) == "5.23.0"
    assert Environment(("python",), found | {"transformers": "4.57.6"}).version(client) is None
    assert Environment(("python",), {"transformers": "5.23.0"}).version(client) is None
    here = {client.name for client in CLIENTS if this_environment().version(client)}
    assert {"automodel", "sentence_transformers", "onnxruntime"} <= here
    assert "automodel, remote code" not in here  # only older versions of transformers need it


def test_the_second_environment_is_asked_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho \'{"Sentence_Transformers": "5.1.2", "torch": "2.13.0"}\'\n', encoding="utf-8")
    python.chmod(0o755)
    package = tmp_path / "node_modules" / NODE_PACKAGE / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text(json.dumps({"version": "4.3.1"}), encoding="utf-8")
    node = tmp_path / "path" / "node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\n", encoding="utf-8")
    node.chmod(0o755)
    monkeypatch.setenv("COMPAT_PYTHON", str(python))
    monkeypatch.setenv("PATH", f"{node.parent}{os.pathsep}{os.environ['PATH']}")
    _, second, third = all_environments()
    assert second.packages == {"sentence-transformers": "5.1.2", "torch": "2.13.0"}
    assert (third.command, third.packages) == ((str(node),), {NODE_PACKAGE: "4.3.1"})
    monkeypatch.setenv("COMPAT_PYTHON", str(tmp_path / "nowhere"))
    assert len(all_environments()) == 1


def test_not_installed_is_listed_and_no_failure() -> None:
    absent, failed = Parity("fastembed", "", problem="not installed"), Parity("openvino", "1", problem="cannot load x")
    agrees = Parity("onnxruntime", "1", 1e-7, 1.0, 1.0)
    assert [entry.failed for entry in (absent, failed, agrees)] == [False, True, False]
    assert absent.as_json() == {"client": "fastembed", "version": "", "problem": "not installed"}
    assert set(agrees.as_json()) == {"client", "version", "largest_difference", "smallest_cosine", "mean_cosine"}
    check([absent, agrees], Path("x"))
    with pytest.raises(ValueError, match="openvino 1 cannot load x; do not publish x"):
        check([agrees, failed], Path("x"))
    assert MIN_COSINE > INT8_MIN_COSINE


def test_a_folder_without_code_is_loaded_without_it_by_older_clients_too(release_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release_folder, tmp_path / "causal"))
    config = read_json(folder / "config.json") | {"is_causal": True, "use_bidirectional_attention": False}
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_drama.py").unlink()
    (folder / "provenance.json").unlink()
    older = Environment((sys.executable,), {"transformers": "4.57.6", "torch": "2.13.0"})
    tried = {entry.client: entry for entry in compare(folder, ["a text", "another"], [older]) if entry.version}
    assert tried.keys() == {"automodel, older transformers"}
    assert not tried["automodel, older transformers"].problem
