"""The whole way from a folder of text to reranked lists with a model that `transformers serve` runs on loopback.

The model is tiny and random, so nothing is said about quality: only that every stage works with a real server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from transformers import AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from drama_models.evaluation import read_run
from tests.conftest import make_llama
from tests.training.augment.chat_server import Fault, serving
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling
from training.augment.mine import MineRecipe, mine
from training.augment.rerank import RerankRecipe, rerank

TEMPLATE = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}\n{% endfor %}assistant:"
START_S = 300  # a machine under load takes its time to import torch


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A chat model of three small layers."""
    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai")
    folder = make_llama(tmp_path_factory.mktemp("served") / "chat", max_position_embeddings=8192)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--port", str(port), "--host", "127.0.0.1"]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--device", "cpu"], env=os.environ | settings, stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + START_S
        while not _healthy(port):
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.5)
        yield Endpoint(url=f"http://127.0.0.1:{port}/v1", model=str(folder), timeout_s=240, concurrency=2)
    finally:
        process.terminate()
        process.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.mark.slow
def test_a_served_model_answers_and_its_answers_are_kept(served: Endpoint, tmp_path: Path) -> None:
    request = ChatRequest((("system", "You greet."), ("user", "Hello?")), Sampling(max_tokens=6))
    client = ChatClient(served, tmp_path / "answers")
    ((_, first),) = client.ask([(0, request)])
    ((_, again),) = client.ask([(0, request)])
    assert first is not None
    assert first == again
    assert first.answer_tokens == 6
    assert first.prompt_tokens > 6
    assert client.this_run.answered == 1


@pytest.mark.slow
def test_a_faulty_proxy_before_the_served_model_costs_no_answer(served: Endpoint, tmp_path: Path) -> None:
    faults: list[Fault] = [429, "cut", 500, "garbage", "empty choice", "no choice", "error inside", 503]

    def forward(messages: list[dict[str, str]]) -> str:
        body = {"model": served.model, "messages": messages, "max_tokens": 4, "temperature": 0.0}
        answer = httpx2.post(f"{served.url}/chat/completions", json=body, timeout=served.timeout_s)
        return str(answer.json()["choices"][0]["message"]["content"]) or "?"

    asked = [(number, ChatRequest((("user", f"Number {number}?"),), Sampling())) for number in range(8)]
    with serving(forward, lambda number, _: faults[number // 2] if number % 2 == 0 and number < 16 else None) as proxy:
        through = replace(served, url=proxy.url, concurrency=1, first_wait_s=0.01)
        client = ChatClient(through, tmp_path / "answers")
        answers = dict(client.ask(asked))
    assert all(answer is not None for answer in answers.values())
    assert client.this_run.retried == client.this_run.answered == 8
    assert client.this_run.failed == 0


@pytest.mark.slow
def test_a_served_model_reranks(served: Endpoint, collection_folder: Path, tmp_path: Path) -> None:
    mine(MineRecipe(collection=collection_folder, out=tmp_path / "bm25.run", k=5, workers=1))
    recipe = RerankRecipe(
        collection=collection_folder, run=tmp_path / "bm25.run", out=tmp_path / "out.run", llm=served, k=5
    )
    figures = rerank(recipe)
    before, after = read_run(recipe.run), read_run(recipe.out)
    assert figures.queries == len(before)
    assert {key: set(hits) for key, hits in after.items()} == {key: set(hits) for key, hits in before.items()}
    assert figures.incomplete + figures.unanswered > 0  # it is random, after all
