"""Publishing against a stand-in of the hub on loopback, spoken to by huggingface_hub itself in a process of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from drama_models.errors import ModelFolderError
from export.publish import PublishRecipe, publish
from export.verification import FILE_NAME, check_verification, verify_and_record
from tests.conftest import TEXTS

ROOT = Path(__file__).parents[2]
REPOSITORY, COMMIT, TOKEN = "someone/small-retriever", "1" * 40, "hf_loopback"


@dataclass
class Received:
    """What the stand-in has been sent."""

    paths: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub to take a commit: plain files within it, large ones by LFS."""

    received: Received
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received.paths.append(self.path)
        self.received.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send({"error": "Invalid username or password."}, status=401)
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path.startswith(f"/api/models/{REPOSITORY}/branch/"):
            self._send({}, status=201)
        elif path.startswith(f"/api/models/{REPOSITORY}/preupload/"):
            self._send({"files": [self._mode(entry["path"]) for entry in json.loads(body)["files"]]})
        elif path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            self._send(
                {"transfer": "basic", "objects": [self._where_to(entry) for entry in json.loads(body)["objects"]]}
            )
        elif path.startswith(f"/api/models/{REPOSITORY}/commit/"):
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._send({"error": "Repository not found"}, status=404, code="RepoNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.large[hashlib.sha256(content).hexdigest()] = content
        self._send({})

    def _mode(self, name: str) -> dict[str, Any]:
        kind = "lfs" if name.endswith((".safetensors", ".onnx")) else "regular"
        return {"path": name, "uploadMode": kind, "shouldIgnore": False}

    def _where_to(self, entry: dict[str, Any]) -> dict[str, Any]:
        host = self.headers["Host"]
        return entry | {"actions": {"upload": {"href": f"http://{host}/store/{entry['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for value in (line["value"] for line in lines if line["key"] == "file"):
            self.received.files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            self.received.files[value["path"]] = self.received.large[value["oid"]]
        address = f"http://{self.headers['Host']}/{REPOSITORY}"
        answer = {"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT}
        self._send(answer | {"pullRequestUrl": f"{address}/discussions/1"})

    def _send(self, content: object, *, status: int = 200, code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, Received]]:
    """Address of the stand-in, and what it has received."""
    received = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"received": received}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


@pytest.fixture
def release(release_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release_folder, tmp_path / "release"))


def run(endpoint: str, home: Path, *words: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        environment.pop(name, None)
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "export", "publish", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_really_nothing_is_asked_or_sent(hub: tuple[str, Received], release: Path, tmp_path: Path) -> None:
    endpoint, received = hub
    result = run(endpoint, tmp_path / "home", str(release), REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert not received.paths
    *listed, last = result.stdout.splitlines()
    sizes = {name: len(content) for name, content in contents(release).items()}
    assert {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listed} == sizes
    assert last.startswith(f"would upload {len(sizes)} files, {sum(sizes.values()):,} bytes, to branch main of")


@pytest.mark.parametrize(
    ("flags", "asked", "answer"),
    [
        ([], "/commit/main", f"/commit/{COMMIT}"),
        (["--revision", "next/one"], "/commit/next%2Fone", f"/commit/{COMMIT}"),
        (["--pull-request"], "/commit/main?create_pr=1", "/discussions/1"),
    ],
    ids=["main", "branch", "pull request"],
)
def test_the_hub_gets_the_verified_files_byte_for_byte(
    hub: tuple[str, Received], release: Path, tmp_path: Path, flags: list[str], asked: str, answer: str
) -> None:
    endpoint, received = hub
    (release / ".cache").mkdir()
    (release / ".cache" / "note").write_text("hidden files stay at home", encoding="utf-8")
    result = run(endpoint, tmp_path / "home", str(release), REPOSITORY, *flags, "--really")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith(f"{endpoint}/{REPOSITORY}{answer}")
    assert f"/api/models/{REPOSITORY}{asked}" in received.paths
    made_branch = f"/api/models/{REPOSITORY}/branch/next%2Fone" in received.paths
    assert made_branch is ("--revision" in flags)
    expected = contents(release)
    expected.pop(".cache/note")
    assert received.files == expected
    assert received.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("token", "repository", "reason"),
    [
        (None, REPOSITORY, "set HF_TOKEN"),
        ("hf_wrong", REPOSITORY, "could not be written"),
        (TOKEN, "someone/absent", "check that the repository exists"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(
    hub: tuple[str, Received], release: Path, tmp_path: Path, token: str | None, repository: str, reason: str
) -> None:
    endpoint, received = hub
    result = run(endpoint, tmp_path / "home", str(release), repository, "--really", token=token)
    assert result.returncode == 2
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert not received.files
    assert token is None or token not in result.stderr


def test_only_the_files_that_clients_agreed_on_are_published(release: Path) -> None:
    recipe = PublishRecipe(release=release, repo=REPOSITORY)
    assert "would upload" in publish(recipe)
    config = release / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b"\n")
    (release / "notes.txt").write_text("new", encoding="utf-8")
    (release / "special_tokens_map.json").rename(release / ".special")
    with pytest.raises(ModelFolderError, match=r"config.json, notes.txt, special_tokens_map.json of .* changed after"):
        publish(recipe)
    (release / ".special").rename(release / "special_tokens_map.json")
    (release / "notes.txt").unlink()
    config.write_bytes(before)
    assert "would upload" in publish(recipe)
    (release / "optimizer.pt").write_bytes(b"pickle")
    with pytest.raises(ModelFolderError, match="holds a pickle"):
        publish(recipe)


def test_a_release_that_no_client_has_loaded_is_refused(release: Path) -> None:
    record = json.loads((release / FILE_NAME).read_text(encoding="utf-8"))
    (release / FILE_NAME).write_text(json.dumps(record | {"clients": []}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="names no client"):
        check_verification(release)
    (release / FILE_NAME).unlink()
    with pytest.raises(ModelFolderError, match="run `python -m export verify"):
        check_verification(release)


def test_a_failed_verify_takes_the_older_record_away(release: Path) -> None:
    (release / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        verify_and_record(release, TEXTS[:4])
    assert not (release / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"repo": "nobody"}, "owner/name"), ({"revision": "next", "pull_request": True}, "exclude each other")],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(PublishRecipe(release=tmp_path, repo=REPOSITORY), **changes)
