"""Asking a large model from several processes on Ray: each is a `ChatClient` with its share of the concurrency.

Processes of one machine share the file of answers, so one that takes the place of another asks only for what that one
had not got. On another machine the file is one of its own, at the same path, and the answers come back with the task.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from drama_models.batching import windows
from drama_models.ray_workers import map_on_ray
from training.augment.answer_cache import Answer
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling, ThisRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    Asked = tuple[tuple[tuple[str, str], ...], dict[str, Any]]
    """Messages and sampling of a request."""

REQUESTS_PER_SLOT = 32  # of a task, for each request that a process has under way at once


def ask_on_ray(
    endpoint: Endpoint, cache: Path, requests: Iterable[ChatRequest], workers: int
) -> Iterator[tuple[dict[str, Answer], ThisRun]]:
    """Answers by the key of their request, with what they took, for some requests at a time.

    Args:
        endpoint: its concurrency is that of all processes together, at least one request each.
        cache: file of the answers, on each machine.
        requests: to be asked.
        workers: processes that ask.

    Raises:
        EndpointError: the endpoint is down, refuses the key, or is no such endpoint; answers so far are kept.
        ClusterError: the cluster is not there, or a worker keeps dying.
    """
    share = replace(endpoint, concurrency=max(1, endpoint.concurrency // workers))
    asked = ((request.messages, asdict(request.sampling)) for request in requests)
    tasks = windows(asked, share.concurrency * REQUESTS_PER_SLOT)
    for _, (answers, part) in map_on_ray(partial(_make_worker, share, cache.absolute()), tasks, workers):
        part["reasons"] = Counter(part["reasons"])
        yield {key: Answer(**answer) for key, answer in answers.items()}, ThisRun(**part)


def _make_worker(endpoint: Endpoint, cache: Path) -> Callable[[list[Asked]], tuple[dict[str, Any], dict[str, Any]]]:
    def ask(task: list[Asked]) -> tuple[dict[str, Any], dict[str, Any]]:
        client = ChatClient(endpoint, cache)
        turns = [(tuple((role, content) for role, content in messages), sampling) for messages, sampling in task]
        requests = [ChatRequest(messages, Sampling(**sampling)) for messages, sampling in turns]
        answers = client.ask((request.key(endpoint.model), request) for request in requests)
        found = {key: asdict(answer) for key, answer in answers if answer is not None}
        return found, vars(client.this_run)

    return ask
