"""Asking a large model through any OpenAI-compatible chat endpoint: many at once, patiently, and never twice.

Every answer goes into a cache on disk before anything else happens to it, under the hash of its request (model,
messages, sampling), so a run that was killed asks only for what it has not got. What may pass (429, 5xx, time-outs,
cut or empty answers) is asked again with growing waits; a request that keeps failing is set aside and counted; an
endpoint that is down, refuses the key or is no such endpoint ends the run with one sentence.

The key is read from the environment when it is needed and is written nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from drama_models.batching import windows
from drama_models.errors import EndpointError
from drama_models.progress import ProgressLog
from drama_models.ray_workers import ray_cluster
from drama_models.surrogates import storable
from training.augment.answer_cache import Answer, AnswerCache

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from drama_models.ray_workers import Engine

Item = TypeVar("Item")
PASSING_STATUSES = {408, 409, 425, 429}  # and 5xx
UNFIT_STATUSES = {400, 413, 422}  # too long, not allowed, not understood
LONGEST_WAIT_S = 60.0
REPORT_EVERY_S = 10.0
BLOCK_REQUESTS = 4096  # held in memory together; their answers are given out in order
BLOCKS_ON_RAY = 4  # in one, since each set of processes takes seconds to start
FAILURES_IN_A_ROW = 10
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the large model answers, and how it is treated."""

    url: str
    """Base address, such as http://localhost:8000/v1."""
    model: str
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it need not be set for a server of one's own."""
    concurrency: int = 16
    """Requests under way at once."""
    timeout_s: float = 120.0
    """Seconds for one answer, from the first byte sent to the last received."""
    attempts: int = 6
    """Times that a request is made before it is set aside."""
    first_wait_s: float = 1.0
    """Longest wait before the second attempt, in seconds; doubled for each further one, up to a minute."""
    usd_per_million_prompt_tokens: float = 0.0
    """Price, for the cost that is shown."""
    usd_per_million_answer_tokens: float = 0.0
    """Price, for the cost that is shown."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={self.url!r} must be an address such as http://localhost:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"url must not hold a key; set the environment variable {self.key_variable} instead.")
        if self.concurrency < 1 or self.attempts < 1 or self.timeout_s <= 0:
            raise ValueError(
                f"concurrency={self.concurrency}, attempts={self.attempts} and timeout_s={self.timeout_s} must be "
                "positive; the defaults are 16, 6 and 120."
            )


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the model draws its answer."""

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_p: float = 0.9
    """Share of the probability that is drawn from."""
    max_tokens: int = 256
    """Tokens of the answer at most."""
    seed: int = 42
    """Sent along; whether it makes answers repeatable is up to the endpoint."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to the model."""

    messages: tuple[tuple[str, str], ...]
    """Role and content of each turn."""
    sampling: Sampling

    def body(self, model: str) -> dict[str, Any]:
        """The request as the endpoint reads it."""
        messages = [{"role": role, "content": content} for role, content in self.messages]
        return {"model": model, "messages": messages, **asdict(self.sampling)}

    def key(self, model: str) -> str:
        """Hash under which its answer is kept; the address is no part of it, since servers move."""
        return hashlib.sha256(json.dumps(self.body(model), sort_keys=True).encode()).hexdigest()


@dataclass
class Usage:
    """What answers took, whenever they were asked for: the same for a run that was killed and one that was not."""

    answers: int = 0
    failed: int = 0
    """Set aside after the last attempt."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    usd: float = 0.0


@dataclass
class ThisRun:
    """What this run asked for, for the terminal."""

    cached: int = 0
    """Answered by an earlier run, at no cost."""
    answered: int = 0
    retried: int = 0
    failed: int = 0
    tokens: int = 0
    usd: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of retries and failures."""

    def add(self, part: ThisRun) -> None:
        """Count what was asked for elsewhere."""
        for name, value in vars(part).items():
            setattr(self, name, getattr(self, name) + value)


class _PassingError(Exception):
    """Worth another attempt, after so many seconds where the endpoint said so."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _UnreachableError(_PassingError):
    """Nobody answers there."""


class _RejectedError(Exception):
    """A request that will never be answered."""


class _UnfitError(_RejectedError):
    """A request that will never be answered for what it holds; others may be."""


class ChatClient:
    """Asks an endpoint, through a cache.

    Args:
        endpoint: where, and how many at once.
        cache: file of the answers; made if absent.
        engine: "local" asks from this process, "ray" from several; see `training.augment.llm_ray`.
        workers: processes that ask, for "ray".
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path, *, engine: Engine = "local", workers: int = 2) -> None:
        self.endpoint, self.cache_path = endpoint, Path(cache)
        self._workers = workers if engine == "ray" else 0
        self.usage, self.this_run = Usage(), ThisRun()
        self._failures_in_a_row = 0

    def ask(
        self, items: Iterable[tuple[Item, ChatRequest]], *, total: int | None = None
    ) -> Iterator[tuple[Item, Answer | None]]:
        """Answers in the order of the requests; None for a request that kept failing.

        Args:
            items: requests, each with whatever the caller wants back beside its answer.
            total: number of requests, if known, for the time left.

        Raises:
            EndpointError: the endpoint is down, refuses the key, or is no such endpoint; answers so far are kept.
            MissingExtraError: Ray is not installed.
            ClusterError: its cluster is not there, or a worker keeps dying.
        """
        reports = _Reports(self.this_run, total)
        size = BLOCK_REQUESTS * (BLOCKS_ON_RAY if self._workers else 1)
        running = ray_cluster(self._workers) if self._workers else nullcontext()
        with running, closing(AnswerCache(self.cache_path)) as cache:
            for block in windows(items, size):
                keys = [request.key(self.endpoint.model) for _, request in block]
                wanted = {key: request for key, (_, request) in zip(keys, block, strict=True)}
                missing = {key: request for key, request in wanted.items() if cache.get(key) is None}
                self.this_run.cached += len(block) - len(missing)
                if missing and self._workers:
                    self._ask_on_ray(missing, cache, reports)
                elif missing:
                    _run(self._ask_all(missing, cache, reports))
                for key, (item, _) in zip(keys, block, strict=True):
                    answer = cache.get(key)
                    self._count(answer)
                    yield item, answer
        reports.last()

    def _ask_on_ray(self, missing: dict[str, ChatRequest], cache: AnswerCache, reports: _Reports) -> None:
        from training.augment.llm_ray import ask_on_ray

        for answers, part in ask_on_ray(self.endpoint, self.cache_path, missing.values(), self._workers):
            for key, answer in answers.items():
                if cache.get(key) is None:  # it came from another machine
                    cache.put(key, answer)
            self.this_run.add(part)
            reports.now_and_then()

    async def _ask_all(self, missing: dict[str, ChatRequest], cache: AnswerCache, reports: _Reports) -> None:
        queue = iter(missing.items())
        key = os.environ.get(self.endpoint.key_variable, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        base = self.endpoint.url.rstrip("/") + "/"
        limits = httpx2.Limits(max_connections=self.endpoint.concurrency)
        try:
            async with (
                httpx2.AsyncClient(base_url=base, headers=headers, timeout=None, limits=limits) as http,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(min(self.endpoint.concurrency, len(missing))):
                    group.create_task(self._work(http, queue, cache, reports))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _work(
        self,
        http: httpx2.AsyncClient,
        queue: Iterator[tuple[str, ChatRequest]],
        cache: AnswerCache,
        reports: _Reports,
    ) -> None:
        """One of several that take requests from the same queue."""
        for key, request in queue:
            try:
                answer = await self._with_retries(http, request, reports)
            except _UnreachableError as error:
                raise self._stop(f"There is no answer from {self.endpoint.url} ({error}); start the server") from None
            except (_PassingError, _RejectedError) as error:
                self._set_aside(error)
            else:
                cache.put(key, answer)
                self.this_run.answered += 1
                self.this_run.tokens += answer.prompt_tokens + answer.answer_tokens
                self.this_run.usd += self._usd(answer)
                self._failures_in_a_row = 0
            reports.now_and_then()

    async def _with_retries(self, http: httpx2.AsyncClient, request: ChatRequest, reports: _Reports) -> Answer:
        growing = wait_random_exponential(multiplier=self.endpoint.first_wait_s, max=LONGEST_WAIT_S)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            self.this_run.retried += 1
            self.this_run.reasons[str(error)] += 1
            reports.now_and_then()
            told_s = error.wait_s if isinstance(error, _PassingError) else None
            return min(told_s, LONGEST_WAIT_S) if told_s is not None else growing(state)

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(self.endpoint.attempts),
            wait=wait,
            reraise=True,
        )
        return await attempts(self._ask_once, http, request.body(self.endpoint.model))

    async def _ask_once(self, http: httpx2.AsyncClient, body: dict[str, Any]) -> Answer:
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                response = await http.post("chat/completions", json=body)
        except TimeoutError:
            raise _PassingError(f"no answer within {self.endpoint.timeout_s:g} s") from None
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol) as error:
            raise _UnreachableError(str(error) or type(error).__name__) from None
        except httpx2.HTTPError as error:
            raise _PassingError(f"connection broke ({type(error).__name__})") from None
        self._check_status(response)
        return self._read(response)

    def _check_status(self, response: httpx2.Response) -> None:
        """Tell what passes from what does not.

        Raises:
            EndpointError: nothing that is sent there will be answered.
        """
        status = response.status_code
        if status in (401, 403):
            variable = self.endpoint.key_variable
            known = "set it to a valid key" if os.environ.get(variable) else "it is not set, set it to a key"
            raise self._stop(f"{self.endpoint.url} refused the key in ${variable} ({self._said(response)}); {known}")
        if status in PASSING_STATUSES or status >= 500:
            raise _PassingError(f"status {status}", _seconds(response.headers.get("retry-after")))
        if status == 404 or 300 <= status < 400 or (status >= 400 and _is_page(response)):
            raise self._stop(
                f"{self.endpoint.url} has no chat completions of model {self.endpoint.model!r} "
                f"({self._said(response)}); check the address, which usually ends in /v1, and the model's name"
            )
        if status in UNFIT_STATUSES:
            raise _UnfitError(self._said(response))
        if status != 200:
            raise _RejectedError(self._said(response))

    def _read(self, response: httpx2.Response) -> Answer:
        """The answer in a response.

        Raises:
            EndpointError: a web page, so this is no such endpoint.
        """
        if _is_page(response):
            raise self._stop(
                f"{self.endpoint.url} answered with a web page, not JSON; check the address, which usually ends in /v1"
            )
        try:
            record = response.json()
            choice, usage = record["choices"][0], record.get("usage") or {}
            text = choice["message"]["content"]
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
            raise _PassingError(f"an answer that is no chat completion ({self._said(response)})") from None
        if not isinstance(text, str) or not text.strip():
            raise _PassingError("an empty answer")
        return Answer(storable(text), str(choice.get("finish_reason")), *tokens)

    def _count(self, answer: Answer | None) -> None:
        if answer is None:
            self.usage.failed += 1
            return
        self.usage.answers += 1
        self.usage.prompt_tokens += answer.prompt_tokens
        self.usage.answer_tokens += answer.answer_tokens
        self.usage.usd += self._usd(answer)

    def _usd(self, answer: Answer) -> float:
        asked = answer.prompt_tokens * self.endpoint.usd_per_million_prompt_tokens
        return (asked + answer.answer_tokens * self.endpoint.usd_per_million_answer_tokens) / 1e6

    def _set_aside(self, error: Exception) -> None:
        reason = str(error)
        self.this_run.failed += 1
        self.this_run.reasons[reason] += 1
        if isinstance(error, _UnfitError) and self.this_run.cached:
            return  # a run before this one was answered: those that it could not ask now come in a row
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise self._stop(
                f"{FAILURES_IN_A_ROW} requests in a row to {self.endpoint.url} failed, the last with: {reason}; "
                "look at the server's log"
            )

    def _stop(self, what: str) -> EndpointError:
        kept = f"{self.this_run.answered + self.this_run.cached:,} answers are kept in {self.cache_path}"
        return EndpointError(f"{what}. {kept}; the same command goes on from there.")

    def _said(self, response: httpx2.Response) -> str:
        """Status and the server's own words, without the key, should it repeat it."""
        try:
            record = response.json()
            error = record.get("error", record) if isinstance(record, dict) else record
            words = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, RecursionError):
            words = "a web page" if _is_page(response) else response.text
        key = os.environ.get(self.endpoint.key_variable, "").strip()
        words = words.replace(key, "[key]") if key else words
        return f"{response.status_code}: {' '.join(words.split())[:SHOWN_CHARACTERS]}"


class _Reports:
    """A line on the terminal now and then: answers, rate, tokens, cost."""

    def __init__(self, this_run: ThisRun, total: int | None) -> None:
        self.this_run, self.began_s = this_run, time.monotonic()
        self.last_s = self.began_s
        self.log = ProgressLog(None, total) if total else None

    def now_and_then(self) -> None:
        """Report if the last report is some time ago."""
        if time.monotonic() - self.last_s >= REPORT_EVERY_S:
            self.last()

    def last(self) -> None:
        """Report, unless nothing was asked."""
        self.last_s = time.monotonic()
        run = self.this_run
        if self.log is None or not run.answered + run.failed + run.retried:
            return
        self.log.record(
            run.cached + run.answered + run.failed,
            answers_per_s=run.answered / max(self.last_s - self.began_s, 1e-9),
            cached=run.cached,
            retried=run.retried,
            failed=run.failed,
            tokens=run.tokens,
            usd=run.usd,
        )


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def _is_page(response: httpx2.Response) -> bool:
    return "html" in response.headers.get("content-type", "") or response.content[:64].lstrip().startswith(b"<")


def _seconds(header: str | None) -> float | None:
    """A Retry-After of seconds; a date is left to our own waits."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
