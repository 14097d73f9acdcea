"""`python -m export` as its users type it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drama_models.errors import OutputError, RecipeError
from drama_models.folders import sha256_of_folder
from drama_models.model_folder import read_json
from export.__main__ import COMMANDS, VerifyRecipe, main, parsed
from export.adopt import AdoptRecipe
from export.publish import PublishRecipe
from export.release import ReleaseRecipe
from export.trim_vocab import TrimRecipe
from export.verification import FILE_NAME, check_verification

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "export", *words], capture_output=True, text=True, cwd=ROOT)


def test_verify_prints_a_line_for_each_client_and_records_it(release_folder: Path, tmp_path: Path) -> None:
    release = Path(shutil.copytree(release_folder, tmp_path / "release"))
    (release / FILE_NAME).unlink()
    (release / "README.md").write_text("before\n\n## Do all clients agree?\n\nnobody knows\n\n## Limits\n\nnone\n")
    result = run("verify", str(release), "--others", "false")
    assert result.returncode == 0, result.stderr
    table = {line.split("|")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("| ")}
    for client in ("automodel 5", "sentence_transformers 6", "onnxruntime 1", "openvino 20"):
        (line,) = [line for name, line in table.items() if name.startswith(client)]
        assert "1.000000" in line
    for client in ("fastembed", "transformers.js", "automodel, remote code"):
        assert table[client] == f"| {client} | not installed |  |  |"
    for server in ("vLLM", "text-embeddings-inference", "llama.cpp"):
        assert f"{server}, not run: the fields that it reads are right" in result.stdout
    card = (release / "README.md").read_text()
    assert card.startswith("before\n\n## Do all clients agree?\n\n| client |")
    assert card.endswith("|  |  |\n\n## Limits\n\nnone\n")
    clients = read_json(release / FILE_NAME)["clients"]
    assert {entry["client"] for entry in clients} == {"automodel", "sentence_transformers", "onnxruntime", "openvino"}
    assert set(check_verification(release)) == set(check_verification(release_folder))


def test_verify_of_clients_that_disagree_prints_the_table_and_exits_with_1(
    release_folder: Path, tmp_path: Path
) -> None:
    release = Path(shutil.copytree(release_folder, tmp_path / "release"))
    (release / "onnx" / "model.onnx").write_bytes(b"no graph")
    result = run("verify", str(release), "--others", "false")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("| onnxruntime")]
    assert "cannot load release" in line
    assert "| sentence_transformers 6" in result.stdout
    assert "clients disagree" in result.stderr
    assert not (release / FILE_NAME).exists()


def test_release_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    result = run("release", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("release",), ("trim-vocab", "--languages", "en")])
def test_a_source_is_never_replaced_by_what_is_made_of_it(
    command: tuple[str, ...], retriever_folder: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(retriever_folder, tmp_path / "made" / "source"))
    before = sha256_of_folder(tmp_path / "made")
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link", tmp_path / "made"):
        with pytest.raises(OutputError, match="which it is made from; choose another name"):
            COMMANDS[command[0]][0]([str(source), "--out", str(out), *command[1:]])
    assert sha256_of_folder(tmp_path / "made") == before


def test_words_are_read_as_people_type_them(tmp_path: Path) -> None:
    words = ["RETRIEVER", "--out", "OUT", "--onnx", "fp32,fp16", "--max-length=64", "--dims=[64,32]"]
    release = parsed(ReleaseRecipe, "release", words, "retriever")
    assert (release.retriever, release.onnx, release.dims) == (Path("RETRIEVER"), ("fp32", "fp16"), (64, 32))
    assert release.max_length == 64
    words = ["RELEASE", "owner/name", "--pull-request", "--really"]
    publish = parsed(PublishRecipe, "publish", words, "release", "repo")
    assert (publish.repo, publish.pull_request, publish.really) == ("owner/name", True, True)
    norwegian = parsed(TrimRecipe, "trim-vocab", ["FOLDER", "--out", "OUT", "--languages", "no,en"], "model")
    assert norwegian.languages == ("no", "en")
    (tmp_path / "trim.yaml").write_text("model: FOLDER\nlanguages: [en, de]\n", encoding="utf-8")
    trim = parsed(TrimRecipe, "trim-vocab", [str(tmp_path / "trim.yaml"), "OTHER", "--out", "OUT"], "model")
    assert (trim.model, trim.languages) == (Path("OTHER"), ("en", "de"))


def test_an_interrupted_command_says_what_it_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "release", (interrupted, ""))
    monkeypatch.setattr("sys.argv", ["export", "release"])
    assert main() == 130
    assert capsys.readouterr().err == "interrupted; no folder was made or replaced\n"


def test_what_is_missing_or_contradicts_itself_is_named() -> None:
    with pytest.raises(RecipeError, match="out"):
        parsed(AdoptRecipe, "adopt", ["facebook/drama-base"], "model")
    assert parsed(AdoptRecipe, "adopt", ["facebook/drama-base", "--out", "OUT"], "model").license == ""
    with pytest.raises(RecipeError, match="lacks fp32"):
        parsed(ReleaseRecipe, "release", ["RETRIEVER", "--out", "OUT", "--onnx", "fp16"], "retriever")
    with pytest.raises(RecipeError, match="pass --name Llama-small"):
        words = ["RETRIEVER", "--out", "work/small", "--license", "llama3.2"]
        parsed(ReleaseRecipe, "release", words, "retriever")
    named = parsed(ReleaseRecipe, "release", [*words, "--name", "owner/Llama-small"], "retriever")
    assert named.name == "owner/Llama-small"
    with pytest.raises(RecipeError, match="max_tokens=-3 must be above 0"):
        parsed(VerifyRecipe, "verify", ["RELEASE", "--max-tokens=-3"], "release")
    for length in ("0", "-5", "1", "2"):
        with pytest.raises(RecipeError, match=f"max_length={length} leaves no room between the two ends"):
            parsed(ReleaseRecipe, "release", ["RETRIEVER", "--out", "OUT", f"--max-length={length}"], "retriever")
    with pytest.raises(RecipeError, match="owner/name"):
        parsed(PublishRecipe, "publish", ["RELEASE", "name"], "release", "repo")
