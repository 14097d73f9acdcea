"""Work on Ray: two local workers, one of which is killed, leave the files that a single process leaves.

One cluster serves all tests here, since it takes some seconds to start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from drama_models import Encoder
from drama_models.bulk import encode_shards
from drama_models.cli import main
from drama_models.collection import Collection
from drama_models.errors import ClusterError, CollectionError
from drama_models.folders import sha256_of_folder
from drama_models.ray_workers import Engine, map_on_ray, ray_cluster
from tests.conftest import TEXTS
from tests.training.augment.chat_server import ChatServer, serving
from tests.workers_on_ray import DIE, FAIL, KILLED, WaitingEncoder, fragile_worker
from training.augment.generate import GenerateRecipe, QueryKind, generate
from training.augment.llm import Endpoint
from training.augment.mine import MineRecipe, mine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]
CONCURRENCY = 4
ENGINES: tuple[Engine, ...] = ("local", "ray")
DOCUMENTS = [(f"d{number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # else other tests' processes go first
        environment.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster(2) as ray:
            yield ray


@contextmanager
def one_is_killed(notes: Path) -> Iterator[None]:
    """SIGKILL for one of two processes in the middle of their tasks, see `tests.workers_on_ray.wait_for_the_kill`."""
    notes.mkdir()

    def kill() -> None:
        while len(there := list(notes.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(int(there[0].name), signal.SIGKILL)
        (notes / KILLED).touch()

    thread = Thread(target=kill, daemon=True)
    thread.start()
    yield
    assert len(list(notes.iterdir())) == 4  # two workers, the one that took the place of the first, and the note


def test_a_killed_worker_changes_no_shard(cluster: Any, release_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(release_folder)
    manifest = encode_shards(encoder, DOCUMENTS, tmp_path / "local", shard_documents=6)
    assert [shard["count"] for shard in manifest["shards"]] == [6] * 16
    begun = ("job.json", "00000.npy", "00000.json")
    (tmp_path / "ray").mkdir()
    for name in begun:
        shutil.copy2(tmp_path / "local" / name, tmp_path / "ray")
    with one_is_killed(tmp_path / "notes"):
        waiting = WaitingEncoder(encoder, tmp_path / "notes")
        made = encode_shards(waiting, DOCUMENTS, tmp_path / "ray", shard_documents=6, engine="ray")
    assert made == manifest
    assert sha256_of_folder(tmp_path / "ray") == sha256_of_folder(tmp_path / "local")
    for name in begun:  # kept, not made anew
        assert (tmp_path / "ray" / name).stat().st_mtime_ns == (tmp_path / "local" / name).stat().st_mtime_ns


def test_the_command_on_ray_stores_the_same_codes_and_counts_cut_texts(
    cluster: Any, release_folder: Path, collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encode", str(release_folder), str(collection_folder)]
    options = ["--store", "int8", "--max-length", "12"]
    said = []
    for out, engine in (("local", []), ("ray", ["--engine", "ray", "--workers", "2"])):
        assert main([*words, str(tmp_path / out), *options, *engine]) == 0
        said.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")])
    assert "texts were longer than the maximum length" in said[0][0]
    assert said[0] == said[1]
    assert sha256_of_folder(tmp_path / "ray") == sha256_of_folder(tmp_path / "local")


def with_address(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own that is given the address of a cluster."""
    environment = os.environ | {"RAY_ADDRESS": address}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)


ENCODE_AND_SAY_WHERE = """
import sys
from drama_models.cli import main
from drama_models.ray_workers import ray_cluster
with ray_cluster(2) as ray:
    assert main(["encode", *sys.argv[1:], "--engine", "ray"]) == 0
    print(ray.get_runtime_context().gcs_address)
"""


def test_a_cluster_is_used_by_its_address(
    cluster: Any, release_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    folders = str(release_folder), str(collection_folder)
    assert main(["encode", *folders, str(tmp_path / "local")]) == 0
    address = cluster.get_runtime_context().gcs_address
    encoded = with_address(address, "-c", ENCODE_AND_SAY_WHERE, *folders, str(tmp_path / "ray"))
    assert encoded.returncode == 0, encoded.stderr
    assert encoded.stdout.splitlines()[-1] == address
    assert sha256_of_folder(tmp_path / "ray") == sha256_of_folder(tmp_path / "local")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_that_nobody_answers_is_told_at_once(
    address: str, release_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    words = "encode", str(release_folder), str(collection_folder), str(tmp_path / "ray"), "--engine", "ray"
    failed = with_address(address, "-m", "drama_models.cli", *words)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: There is no Ray cluster at $RAY_ADDRESS={address} (")
    assert len(failed.stderr.splitlines()) == 1


def connections() -> Iterator[tuple[psutil.Process, Any]]:
    """Of this process and all below it."""
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            yield from ((process, connection) for connection in process.net_connections("inet"))


def test_a_local_cluster_listens_on_the_loopback_address_only(cluster: Any) -> None:
    found = [(process, connection) for process, connection in connections() if connection.status == psutil.CONN_LISTEN]
    assert any(process.name() == "raylet" for process, _ in found)
    assert {connection.laddr.ip for _, connection in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_what_goes_wrong_in_a_worker_is_told_in_its_words(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CollectionError, match=r"^No such document; look at the corpus\.$"):
        list(map_on_ray(fragile_worker, [1, FAIL], workers=2))
    monkeypatch.setattr("drama_models.ray_workers.TASK_ATTEMPTS", 1)
    with pytest.raises(ClusterError, match="A worker of Ray died at the same task, once for each of 1 attempts"):
        list(map_on_ray(fragile_worker, [1, DIE], workers=2))


def worker_of(port: int) -> int:
    """Number of a process below this one that is connected to a server here."""
    workers = [process for process, connection in connections() if connection.raddr and connection.raddr.port == port]
    return next(process.pid for process in workers if process != psutil.Process())


def test_a_killed_worker_asks_for_no_answer_twice(cluster: Any, tmp_path: Path) -> None:
    records = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS[:60])]
    Collection.write(tmp_path / "passages", records)
    killed = Event()

    def hold(number: int, _: object) -> None:
        if number >= 30:
            killed.wait()

    def kill(server: ChatServer) -> None:
        while server.under_way < CONCURRENCY:  # both workers are in the middle of their tasks
            time.sleep(0.02)
        os.kill(worker_of(server.server_port), signal.SIGKILL)
        killed.set()

    made: dict[str, dict[str, Any]] = {}
    asked: dict[str, list[str]] = {}
    kinds: tuple[QueryKind, ...] = ("question", "claim", "title", "search")
    for engine in ENGINES:
        with serving(said, hold if engine == "ray" else lambda *_: None) as server:
            if engine == "ray":
                Thread(target=kill, args=(server,), daemon=True).start()
            llm = Endpoint(url=server.url, model="tiny", concurrency=CONCURRENCY, first_wait_s=0.01)
            recipe = GenerateRecipe(
                collection=tmp_path / "passages", out=tmp_path / engine, llm=llm, kinds=kinds, engine=engine
            )
            made[engine] = generate(recipe)["figures"]
            asked[engine] = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert killed.is_set()
    assert made["ray"] == made["local"]
    assert made["ray"]["kept"] == {"question": 60, "claim": 60, "title": 60, "search": 60}
    for name in ("examples.jsonl", "rejected.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert set(asked["ray"]) == set(asked["local"])
    assert len(asked["ray"]) - len(set(asked["ray"])) <= CONCURRENCY // 2  # those that the killed one had under way


def test_mining_on_ray_writes_the_same_run(
    cluster: Any, release_folder: Path, collection_folder: Path, tmp_path: Path
) -> None:
    for engine in ENGINES:
        recipe = MineRecipe(
            collection=collection_folder, out=tmp_path / engine, teacher=str(release_folder), k=5, engine=engine
        )
        assert mine(recipe) == 8
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "local").read_bytes()


def said(messages: list[dict[str, str]]) -> str:
    return f"Where is {messages[-1]['content'][-40:]}?".replace("\n", " ")
