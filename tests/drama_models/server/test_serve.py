"""`drama serve` in a process of its own on the loopback address, called by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from drama_models import Encoder, Index, Retriever
from drama_models.cli import main
from drama_models.server.app import Served, make_app
from drama_models.server.limits import Limits
from drama_models.server.run import listen
from tests.conftest import TEXTS


def start(*words: str | Path) -> tuple[subprocess.Popen[str], str]:
    """A server, and its address once it listens."""
    command = [sys.executable, "-m", "drama_models.cli", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving \S+ at (http://\S+)/v1/embeddings", line):
            return process, found[1]
    raise AssertionError(f"the server ended with {process.wait()}")


@pytest.fixture(scope="module")
def index_folder(release_folder: Path, collection_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "my.index"
    assert main(["index", str(collection_folder), str(folder), "--model", str(release_folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def address(release_folder: Path, index_folder: Path) -> Iterator[str]:
    process, found = start(release_folder, "--index", index_folder, "--max-length", "64")
    yield found
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM


@pytest.fixture(scope="module")
def encoder(release_folder: Path) -> Encoder:
    return Encoder.from_pretrained(release_folder)


@pytest.fixture
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer, whatever it is."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openais_client_gets_our_vectors(client: OpenAI, encoder: Encoder, encoding: Any) -> None:
    texts = [*TEXTS[:5], "", "日本語", "\x00", "é 🚀"]
    answer = client.embeddings.create(input=texts, model="release", encoding_format=encoding)
    vectors: list[Any] = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        vectors = [np.frombuffer(base64.b64decode(row), "<f4") for row in vectors]
    np.testing.assert_allclose(np.array(vectors), encoder.encode_documents(texts), atol=1e-6)
    assert [entry.index for entry in answer.data] == list(range(len(texts)))
    assert answer.usage.prompt_tokens == sum(len(encoder.tokenise(text)[0]) for text in texts)
    assert answer.model == "release"


def test_one_text_in_its_first_dimensions_behind_the_query_prompt(client: OpenAI, encoder: Encoder) -> None:
    asked: dict[str, Any] = {"input": "find it", "model": "release", "dimensions": 16}
    answer = client.embeddings.create(**asked, extra_body={"input_type": "query"})
    named = client.embeddings.create(**asked, extra_body={"prompt_name": "query"})
    expected = encoder.encode_queries("find it", dim=16)
    np.testing.assert_allclose([answer.data[0].embedding], expected, atol=1e-6)
    assert answer.data[0].embedding == named.data[0].embedding
    plain = client.embeddings.create(**asked).data[0].embedding
    np.testing.assert_allclose([plain], encoder.encode_documents("find it", dim=16), atol=1e-6)


def test_search_answers_as_a_retriever(address: str, encoder: Encoder, index_folder: Path) -> None:
    retriever = Retriever(encoder, Index.load(index_folder))
    status, answer = post(f"{address}/search", {"query": "digest of a file", "k": 4})
    assert status == 200
    expected = retriever.search("digest of a file", k=4)
    assert [hit["id"] for hit in answer["hits"]] == [key for key, _ in expected]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [score for _, score in expected], atol=1e-6)
    _, several = post(f"{address}/search", {"query": ["digest of a file", "join"], "k": 4})
    assert [hit["id"] for hit in several["hits"][0]] == [key for key, _ in expected]
    assert len(several["hits"]) == 2


def test_what_is_served_and_whether_it_lives(client: OpenAI, address: str) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.model_dump()["dimensions"], model.model_dump()["max_tokens"]) == ("release", 48, 64)
    with urllib.request.urlopen(f"{address}/health") as answer:
        assert json.loads(answer.read()) == {"status": "ok", "requests": 0}


def test_openais_client_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="no model 'text-embedding-3-small'; ask for release"):
        client.embeddings.create(input="x", model="text-embedding-3-small")
    with pytest.raises(UnprocessableEntityError, match="holds token ids"):
        client.embeddings.create(input=[[1, 2, 3]], model="release")
    with pytest.raises(UnprocessableEntityError, match="holds token ids"):
        client.embeddings.create(input=[1, 2, 3], model="release")
    with pytest.raises(BadRequestError, match="dimensions=49 must be a whole number between 1 and 48") as caught:
        client.embeddings.create(input="x", model="release", dimensions=49)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("v1/embeddings", b"{", 400, "not JSON"),
        ("v1/embeddings", b"\xff", 400, "not JSON"),
        ("v1/embeddings", b"[" * 100_000, 400, "not JSON"),
        ("v1/embeddings", [], 400, "must be a JSON object"),
        ("v1/embeddings", {}, 400, "`input` must be a text"),
        ("v1/embeddings", {"input": []}, 400, "not empty"),
        ("v1/embeddings", {"input": [None]}, 400, "number 0 is NoneType"),
        ("v1/embeddings", {"input": ["a", {}]}, 400, "number 1 is dict"),
        ("v1/embeddings", {"input": "a", "dimensions": 1.5}, 400, "whole number"),
        ("v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "float or base64"),
        ("v1/embeddings", {"input": "a", "input_type": "clustering"}, 400, "must be one of query"),
        (
            "v1/embeddings",
            {"input": "a", "prompt_name": "query", "input_type": "passage"},
            400,
            "and input_type is passage",
        ),
        ("v1/embeddings", {"input": "a", "prompt_name": "nope"}, 422, "prompt_name='nope' is not among"),
        ("v1/embeddings", {"input": "a", "model": 3}, 400, "`model` must be text"),
        ("v1/embeddings", {"input": "a", "\ud800": 3}, 400, "There is no field"),
        ("v1/embeddings", {"input": "a", "truncate": 1}, 400, "true or false"),
        ("v1/embeddings", {"input": ["a"] * 2049}, 413, "a request may have 2048"),
        ("v1/embeddings", {"input": ["a", "word " * 99]}, 413, "number 1 has more than 64 tokens"),
        ("v1/embeddings", b" " * (17 << 20), 413, "larger than 16,777,216 bytes"),
        ("search", {"query": "a", "k": 0}, 400, "`k` must be a whole number above 0"),
        ("search", {"query": "a", "k": 1001}, 400, "gives up to 1000"),
        ("search", {"input": "a"}, 400, "There is no field 'input' here"),
        ("nothing", {}, 404, "Not Found"),
        ("health", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_callers_mistake_is_a_status_and_a_sentence(
    address: str, path: str, body: Any, status: int, message: str
) -> None:
    found, answer = post(f"{address}/{path}", body)
    assert (found, list(answer)) == (status, ["error"])
    assert message in answer["error"]["message"]
    assert "Traceback" not in json.dumps(answer)


def test_texts_that_are_too_long_are_cut_where_that_is_asked_for(address: str, encoder: Encoder) -> None:
    status, answer = post(f"{address}/v1/embeddings", {"input": "word " * 99, "truncate": True})
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 64)
    with pytest.warns(UserWarning, match="1 texts were longer"):
        expected = Encoder.from_pretrained(encoder.folder, max_length=64).encode_documents("word " * 99)
    np.testing.assert_allclose([answer["data"][0]["embedding"]], expected, atol=1e-6)


def test_a_web_page_cannot_call_it(address: str) -> None:
    body = {"input": "a"}
    assert post(f"{address}/v1/embeddings", body, **{"Content-Type": "text/plain"})[0] == 415
    for name in ("evil.example", "localhost.evil.example:80", "[::1", "127.0.0.1@evil.example", "10.0.0.1"):
        assert post(f"{address}/v1/embeddings", body, Host=name)[0] == 403, name
    for name in ("localhost:80", "LocalHost", "[::1]", "[::1]:80", "127.0.0.2:80"):
        assert post(f"{address}/v1/embeddings", body, Host=name)[0] == 200, name


def test_many_callers_at_once_each_get_their_own(client: OpenAI, encoder: Encoder) -> None:
    expected = encoder.encode_documents(TEXTS)

    def ask(number: int) -> float:
        size = number % 5 + 1
        texts = [TEXTS[(number + step) % len(TEXTS)] for step in range(size)]
        answer = client.embeddings.create(input=texts, model="release")
        rows = [(number + step) % len(TEXTS) for step in range(size)]
        return float(np.abs(np.array([entry.embedding for entry in answer.data]) - expected[rows]).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(96))) < 1e-6


@pytest.mark.parametrize("whole", [True, False], ids=["while computed", "while sending"])
def test_for_a_caller_who_hangs_up_no_more_is_computed(
    encoder: Encoder, whole: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{text} {number}" for number in range(500) for text in TEXTS[:2]]
    body, statuses = json.dumps({"input": texts}).encode(), list[int]()
    going_on, begun, computed, pooled = threading.Event(), threading.Event(), list[int](), encoder.pooled

    def held_up(ids: Any) -> Any:
        computed.append(len(ids))
        begun.set()
        assert going_on.wait(60)
        return pooled(ids)

    monkeypatch.setattr(encoder, "pooled", held_up)

    async def run() -> None:
        app, messages = make_app(Served(encoder=encoder, name="release")), asyncio.Queue[dict[str, Any]]()
        messages.put_nowait({"type": "http.request", "body": body[: None if whole else 99], "more_body": not whole})
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers, "query_string": b""}

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        async with app.router.lifespan_context(app):
            answering = asyncio.create_task(app(scope, messages.get, send))
            if whole:
                assert await asyncio.to_thread(begun.wait, 60)
            messages.put_nowait({"type": "http.disconnect"})
            await answering
            going_on.set()
            assert app.state.server.batcher.inside == 0

    asyncio.run(run())
    assert statuses[0] == 499
    assert len(computed) == int(whole)  # the batch that had begun, of many
    assert sum(computed) < len(texts)
    assert not caplog.records


@pytest.mark.parametrize("held_up", ["body", "tokenise", "search"])
def test_a_request_has_its_place_and_its_time_wherever_it_is(
    held_up: str, encoder: Encoder, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, going_on = Index.load(index_folder), threading.Event()
    if held_up != "body":
        monkeypatch.setattr(encoder if held_up == "tokenise" else index, held_up, lambda *_, **__: going_on.wait(60))
    served = Served(encoder=encoder, name="release", index=index, limits=Limits(waiting_requests=1, timeout_s=0.2))
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/search", "headers": headers, "query_string": b""}

    async def ask(app: Any) -> int:
        messages, statuses = asyncio.Queue[dict[str, Any]](), list[int]()
        body = {"type": "http.request", "body": b'{"query": "a"}', "more_body": held_up == "body"}
        messages.put_nowait(body)

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await app(scope, messages.get, send)
        return statuses[0]

    async def run() -> tuple[int, int]:
        app = make_app(served)
        async with app.router.lifespan_context(app):
            first, second = await asyncio.gather(ask(app), ask(app))
            assert app.state.server.batcher.inside == 0
            going_on.set()
            return first, second

    assert asyncio.run(run()) == (503, 429)


def test_told_to_end_it_answers_what_has_begun(release_folder: Path) -> None:
    process, address = start(release_folder)
    answers: list[int] = []
    body = {"input": [f"{text} {number}" for number in range(20) for text in TEXTS]}
    caller = threading.Thread(target=lambda: answers.append(post(f"{address}/v1/embeddings", body)[0]))
    caller.start()
    while json.loads(urllib.request.urlopen(f"{address}/health").read())["requests"] == 0 and caller.is_alive():
        pass
    process.send_signal(signal.SIGINT)
    caller.join(timeout=120)
    assert answers == [200]
    assert process.wait(timeout=60) == 0
    assert process.stdout is not None
    assert "is no longer served" in process.stdout.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_socket_is_one_that_asyncio_answers_on_without_delay(host: str) -> None:
    with listen(host, 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
        with socket.create_connection(listening.getsockname()[:2]):
            accepted, _ = listening.accept()
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY
            accepted.close()


def test_what_cannot_be_served_is_one_sentence(
    release_folder: Path, retriever_folder: Path, index_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(release_folder), "--port", port]) == 2
        assert f"127.0.0.1 cannot be listened on at port {port}" in capsys.readouterr().err
    assert main(["serve", str(release_folder), "--host", "no such host"]) == 2
    assert main(["serve", str(release_folder), "--port", "99999"]) == 2
    assert "--port 99999 must be from 1 to 65535" in capsys.readouterr().err
    assert main(["serve", str(retriever_folder), "--index", str(index_folder)]) == 2
    assert "vectors lie in another space" in capsys.readouterr().err


def test_what_nobody_foresaw_is_in_the_log_and_not_in_the_answer(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(encoder, "pooled", fail)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/embeddings", "raw_path": b"/v1/embeddings", "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")], "root_path": "",
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"input": "a"}', "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        app = make_app(Served(encoder=encoder, name="release"))
        async with app.router.lifespan_context(app):
            with pytest.raises(ZeroDivisionError):  # for the server's own log
                await app(scope | {"app": app, "state": {}}, receive, send)

    asyncio.run(call())
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"]["message"] == "This server failed; its log says why."
    assert b"secret" not in sent[1]["body"]
    assert "secret detail" in caplog.text
