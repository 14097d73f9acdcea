"""Texts of all callers in common batches: what comes while one batch is computed makes up the next.

Nothing waits for a batch to fill, so that a lone request is as fast as without this. Callers take turns, a batch each:
who sends three hundred thousand tokens does not keep waiting who sends ten. One thread computes, in batches of the size
that the runtime is fastest with; what may wait is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np

from drama_models.server.requests import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from drama_models.encoder import Encoder
    from drama_models.server.limits import Limits


class _Job:
    """The texts of one request."""

    def __init__(self, encoder: Encoder, rows: Sequence[NDArray[np.int64]], result: asyncio.Future[None]) -> None:
        self.encoder, self.rows, self.result = encoder, rows, result
        self.pooled = np.empty((len(rows), encoder.profile.hidden_size), dtype=np.float32)
        self.tokens = sum(map(len, rows))
        self.begun = 0  # texts that are in a batch, or were


class Batcher:
    """Computes pooled vectors for many callers; use it inside a running event loop, and close it.

    Args:
        limits: of what may wait.
        together: whether requests share batches; else each is computed by itself, in the order they came.
    """

    def __init__(self, limits: Limits, *, together: bool = True) -> None:
        self._limits, self._together = limits, together
        self._waiting: deque[_Job] = deque()
        self._inside = 0  # requests that are being read, wait, or are computed
        self._tokens = 0  # that wait or are computed
        self._filled = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._task: asyncio.Task[None] | None = None

    @property
    def inside(self) -> int:
        """Requests that are being read, wait, or are computed."""
        return self._inside

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """For one request, from before its body is read until it is answered.

        Raises:
            RequestError: 429 where too much waits already, 503 where it takes too long.
        """
        if self._inside >= self._limits.waiting_requests or self._tokens > self._limits.waiting_tokens:
            raise _crowded()
        self._inside += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                yield
        except TimeoutError:
            raise RequestError(503, "This took too long, the server has too much to do; try again later.") from None
        finally:
            self._inside -= 1

    async def pooled(self, encoder: Encoder, rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors of tokenised texts, (number of texts, hidden size), not cut and not normalised.

        Raises:
            RequestError: 429 where too many tokens wait already.
        """
        job = _Job(encoder, rows, asyncio.get_running_loop().create_future())
        if self._tokens and self._tokens + job.tokens > self._limits.waiting_tokens:
            raise _crowded()
        self._tokens += job.tokens
        self._waiting.append(job)
        self._filled.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            await job.result
        finally:
            self._tokens -= job.tokens
        return job.pooled

    async def close(self) -> None:
        """Stop; whoever still waits gets an error."""
        if self._task is not None:
            self._task.cancel()
        for job in self._waiting:
            job.result.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            try:
                await loop.run_in_executor(self._thread, _compute, batch)
            except Exception as error:  # whatever it is, it is the callers' answer and not the end of this loop
                for job, _ in batch:
                    if not job.result.done():
                        job.result.set_exception(error)
                continue
            for job, (_, end) in batch:
                if end == len(job.rows) and not job.result.done():
                    job.result.set_result(None)

    def _take(self) -> list[tuple[_Job, tuple[int, int]]]:
        """Jobs of one encoder and which of their texts, up to a batch.

        Who has more texts goes to the end of the line, who waits for another encoder keeps the place.
        """
        batch: list[tuple[_Job, tuple[int, int]]] = []
        others: list[_Job] = []
        unfinished: list[_Job] = []
        room = 0
        while self._waiting and (not batch or (self._together and room > 0)):
            job = self._waiting.popleft()
            if job.result.done():  # nobody waits for it any more, or it failed
                continue
            if batch and job.encoder is not batch[0][0].encoder:
                others.append(job)
                continue
            room = room if batch else job.encoder.runtime.batch_tokens
            begin = end = job.begun
            while end < len(job.rows) and (room > 0 or not self._together):
                room -= len(job.rows[end])
                end += 1
            job.begun = end
            batch.append((job, (begin, end)))
            if end < len(job.rows):
                unfinished.append(job)
        self._waiting.extendleft(reversed(others))
        self._waiting.extend(unfinished)
        return batch


def _crowded() -> RequestError:
    return RequestError(429, "Too many requests wait already; try again soon.", code="rate_limit_exceeded")


def _compute(batch: list[tuple[_Job, tuple[int, int]]]) -> None:
    encoder = batch[0][0].encoder
    rows = [row for job, (begin, end) in batch for row in job.rows[begin:end]]
    pooled, first = encoder.pooled(rows), 0
    for job, (begin, end) in batch:
        job.pooled[begin:end] = pooled[first : first + end - begin]
        first += end - begin
