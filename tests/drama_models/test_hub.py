"""Loading by hub name, against a stand-in of the hub on loopback: no code and no pickle is ever asked for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY, COMMIT = "someone/small-retriever", "0" * 40
LOAD = """
import json, sys
from drama_models import Encoder
encoder = Encoder.from_pretrained(sys.argv[1], runtime="onnx")
print(json.dumps(encoder.encode_documents(["a text"])[0, :4].tolist()))
"""


class Hub(BaseHTTPRequestHandler):
    """Just enough of the hub: the file list of a repository, and its files."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            files = {
                file.relative_to(self.folder).as_posix(): file for file in self.folder.rglob("*") if file.is_file()
            }
            tree = [
                {"type": "file", "path": name, "oid": COMMIT, "size": file.stat().st_size}
                for name, file in files.items()
            ]
            info = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self._send(json.dumps(tree if "/tree/" in path else info).encode(), body=body)
            return
        _, found, name = path.partition(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if found and (self.folder / name).is_file():
            self._send((self.folder / name).read_bytes(), body=body)
        else:
            self.send_error(404)

    def _send(self, content: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub(release_folder: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of the stand-in, and the paths it was asked for."""
    asked: list[str] = []
    folder = shutil.copytree(release_folder, tmp_path / "on the hub")
    (folder / "onnx" / "model_quantized.onnx").write_bytes(b"a graph that is not run here")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def load(name: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", LOAD, name]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_hub_name_loads_like_the_folder(hub: tuple[str, list[str]], release_folder: Path, tmp_path: Path) -> None:
    endpoint, asked = hub
    result = load(REPOSITORY, endpoint, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(load(str(release_folder), endpoint, tmp_path).stdout)
    assert (release_folder / "modeling_drama.py").is_file()  # it is there, and was not asked for
    assert not [path for path in asked if path.endswith((".py", ".bin", ".pt"))]
    graphs = {Path(path).name for path in asked if "/onnx/" in path}
    assert graphs == {"model.onnx"}
    assert [path for path in asked if path.endswith("/README.md")]  # it states the licence


def test_an_unknown_name_is_one_sentence(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    result = load("someone/absent", hub[0], tmp_path)
    assert result.returncode == 1
    assert "ModelFolderError: someone/absent is not a folder here and could not be fetched" in result.stderr
