"""The client against a real endpoint on loopback, with every fault that endpoints are known for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drama_models.errors import EndpointError
from tests.training.augment.chat_server import KEY, WRONG_SHAPES, Fault, serving
from training.augment.answer_cache import Answer, AnswerCache
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling

FAST: dict[str, Any] = {"model": "tiny", "first_wait_s": 0.01, "timeout_s": 0.5, "key_variable": "TEST_LLM_KEY"}


def requests(count: int) -> list[tuple[int, ChatRequest]]:
    return [(number, ChatRequest((("user", f"question {number}"),), Sampling())) for number in range(count)]


def test_answers_come_in_order_many_at_once_and_no_more_than_allowed(tmp_path: Path) -> None:
    def slow(messages: list[dict[str, str]]) -> str:
        time.sleep(0.02 if messages[-1]["content"].endswith("0") else 0.005)
        return f"{messages[-1]['content']}!"

    with serving(slow) as server:
        client = ChatClient(Endpoint(url=server.url, concurrency=4, **FAST), tmp_path / "answers")
        answers = [(item, answer.text if answer else None) for item, answer in client.ask(iter(requests(30)))]
    assert answers == [(number, f"question {number}!") for number in range(30)]
    assert 2 <= server.most_under_way <= 4
    assert server.bodies[0]["temperature"] == 0.8
    assert server.bodies[0]["seed"] == 42
    assert (client.usage.answers, client.usage.prompt_tokens, client.usage.answer_tokens) == (30, 300, 150)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serving() as server:
        endpoint = Endpoint(url=server.url, usd_per_million_prompt_tokens=1e5, **FAST)
        first = ChatClient(endpoint, tmp_path / "answers")
        both = [*requests(5), *requests(5)]
        texts = [answer for _, answer in first.ask(both)]
        second = ChatClient(endpoint, tmp_path / "answers")
        assert [answer for _, answer in second.ask(both)] == texts
    assert len(server.bodies) == 5
    assert first.usage == second.usage
    assert first.usage.usd == pytest.approx(10.0)
    assert first.this_run.usd == pytest.approx(5.0)
    assert second.this_run.usd == 0
    hotter = ChatRequest((("user", "question 0"),), Sampling(temperature=1.5))
    assert hotter.key("tiny") != requests(1)[0][1].key("tiny") != requests(1)[0][1].key("large")


PASSING: list[Fault] = [429, 500, 503, "hang", "cut", "garbage", "empty choice", "no choice", *WRONG_SHAPES]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(tmp_path: Path, fault: Fault) -> None:
    with serving(faults=lambda number, _: fault if number in (0, 2) else None) as server:
        client = ChatClient(Endpoint(url=server.url, concurrency=1, **FAST), tmp_path / "answers")
        answers = [answer.text if answer else None for _, answer in client.ask(requests(3))]
    assert answers == [f"answer to question {number}" for number in range(3)]
    assert client.this_run.retried == 2
    assert len(server.bodies) == 5


def test_a_request_that_keeps_failing_is_set_aside_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    def poisoned(number: int, body: dict[str, Any]) -> Fault:
        faults: dict[str, Fault] = {"question 1": 400, "question 3": "empty choice"}
        return faults.get(body["messages"][-1]["content"])

    with serving(faults=poisoned) as server:
        endpoint = Endpoint(url=server.url, attempts=3, **FAST)
        client = ChatClient(endpoint, tmp_path / "answers")
        answers = [answer is not None for _, answer in client.ask(requests(5))]
        asked = [body["messages"][-1]["content"] for body in server.bodies]
        assert answers == [True, False, True, False, True]
        assert (asked.count("question 1"), asked.count("question 3")) == (1, 3)  # a refusal does not pass
        assert client.usage.failed == 2
        assert client.this_run.reasons["400: context too long"] == 1
        server.faults = lambda *_: None
        again = ChatClient(endpoint, tmp_path / "answers")
        assert all(answer is not None for _, answer in again.ask(requests(5)))
        assert again.this_run.cached == 3


def test_many_requests_that_no_run_can_ask_do_not_end_a_later_one(tmp_path: Path) -> None:
    def poisoned(_: int, body: dict[str, Any]) -> Fault:
        return 400 if int(body["messages"][-1]["content"].split()[-1]) % 2 else None

    with serving(faults=poisoned) as server:
        endpoint = Endpoint(url=server.url, concurrency=1, **FAST)
        for asked in (24, 12):  # then only what was refused, all of it in a row
            count = len(server.bodies)
            client = ChatClient(endpoint, tmp_path / "answers")
            assert sum(answer is None for _, answer in client.ask(requests(24))) == client.usage.failed == 12
            assert len(server.bodies) - count == asked
        with pytest.raises(EndpointError, match="10 requests in a row"):
            list(ChatClient(endpoint, tmp_path / "others").ask([(0, each) for n, each in requests(24) if n % 2]))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "key",
            r"refused the key in \$TEST_LLM_KEY \(401: Incorrect API key provided: Bearer \[key\]\); set it to a valid",
        ),
        ("page", r"answered with a web page, not JSON; check the address, which usually ends in /v1"),
        (404, r"has no chat completions of model 'tiny' \(404: context too long\); check the address"),
        ("redirect", r"has no chat completions of model 'tiny' \(302: \); check the address"),
        ("error inside", r"10 requests in a row .* no chat completion \(200: upstream is overloaded\); look at the"),
        (500, r"10 requests in a row to .* failed, the last with: status 500; look at the server's log"),
    ],
)
def test_an_endpoint_that_will_not_answer_ends_the_run_and_keeps_what_it_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, message: str
) -> None:
    monkeypatch.setenv("TEST_LLM_KEY", KEY)
    with serving(faults=lambda number, _: fault if number >= 4 else None) as server:
        client = ChatClient(Endpoint(url=server.url, concurrency=2, attempts=2, **FAST), tmp_path / "answers")
        with pytest.raises(EndpointError, match=message) as caught:
            list(client.ask(requests(40)))
        kept = next(number for number in (4, 3) if f"{number} answers are kept" in str(caught.value))  # one on its way
        assert "the same command goes on from there" in str(caught.value)
        server.faults = lambda *_: None
        again = ChatClient(Endpoint(url=server.url, **FAST), tmp_path / "answers")
        assert len(list(again.ask(requests(40)))) == 40
        assert again.this_run.cached == kept
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    client = ChatClient(Endpoint(url=url, attempts=2, **FAST), tmp_path / "answers")
    with pytest.raises(
        EndpointError, match=r"There is no answer from http://127\.0\.0\.1.*; start the server\. 0 answers"
    ):
        list(client.ask(requests(3)))


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for url, message in [
        ("localhost:8000", "must be an address such as http://localhost:8000/v1"),
        ("http://host/v1#secret", "must not hold a key"),
        ("http://user:secret@host/v1", "must not hold a key; set the environment variable OPENAI_API_KEY"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            Endpoint(url=url, model="m")
        assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="must be positive; the defaults are"):
        Endpoint(url="http://h/v1", model="m", concurrency=0)
    (tmp_path / "notes").write_text("not a database, but long enough to be one. " * 50, encoding="utf-8")
    with pytest.raises(EndpointError, match="is no cache of answers; remove it"):
        AnswerCache(tmp_path / "notes")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EndpointError, match=r"cannot hold answers \(unable to open database file\); name a file"):
        AnswerCache(tmp_path / "folder")


def test_a_disk_without_room_is_one_sentence(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers")
    cache._database.execute("PRAGMA max_page_count = 4")  # as if that were all there is
    with pytest.raises(EndpointError, match=r"cannot be read or written \(database or disk is full\); make room"):
        for number in range(1000):
            cache.put(f"{number:064}", Answer("x" * 1000, "stop", 1, 1))
    assert cache.get(f"{0:064}") == Answer("x" * 1000, "stop", 1, 1)
    cache.close()


def test_a_server_that_hangs_is_seen_to_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.augment.llm.REPORT_EVERY_S", 0.0)
    with serving(faults=lambda *_: "hang") as server:
        endpoint = Endpoint(url=server.url, attempts=2, **(FAST | {"timeout_s": 0.05}))
        with pytest.raises(EndpointError, match=r"10 requests in a row .* the last with: no answer within 0\.05 s"):
            list(ChatClient(endpoint, tmp_path / "answers").ask(requests(20), total=20))
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("step 0/20 | answers_per_s 0 | cached 0 | retried 1")


def test_a_killed_run_repeats_no_answer_it_has_got(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.training.augment.test_llm import *\n"
        "client = ChatClient(Endpoint(url=sys.argv[1], concurrency=2, **FAST), Path(sys.argv[2]))\n"
        "list(client.ask(requests(60)))"
    )

    def slow(messages: list[dict[str, str]]) -> str:
        time.sleep(0.03)
        return "yes"

    with serving(slow) as server:
        command = [sys.executable, "-c", program, server.url, str(tmp_path / "answers")]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        while len(server.bodies) < 12:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        client = ChatClient(Endpoint(url=server.url, **FAST), tmp_path / "answers")
        assert all(answer is not None for _, answer in client.ask(requests(60)))
    assert client.this_run.cached >= 8
    assert len(server.bodies) <= 60 + 4  # at most those that were under way
