"""Batches of several callers: turns, bounds and failures, with an encoder whose vectors are known by hand."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from drama_models.server.batching import Batcher
from drama_models.server.limits import Limits
from drama_models.server.requests import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = list[NDArray[np.int64]]


class Sums:
    """Stands for a model: a text's vector is the sum of its tokens; notes every batch, and may be held up or fail."""

    def __init__(self) -> None:
        self.profile = SimpleNamespace(hidden_size=1)
        self.runtime = SimpleNamespace(batch_tokens=10)
        self.batches: list[list[int]] = []
        self.go, self.fails = threading.Event(), False
        self.go.set()

    def pooled(self, ids: Rows) -> NDArray[np.float32]:
        self.go.wait(timeout=10)
        if self.fails:
            raise ZeroDivisionError("on purpose")
        self.batches.append([len(row) for row in ids])
        return np.array([[row.sum()] for row in ids], dtype=np.float32)


def rows(*sums: int, length: int = 4) -> Rows:
    return [np.array([total, *[0] * (length - 1)]) for total in sums]


def ask(encoder: Sums, jobs: list[Rows], limits: Limits | None = None, *, together: bool = True) -> Any:
    """Results of jobs that all wait before the first is computed, in the order in which they ended."""

    async def run() -> Any:
        batcher = Batcher(limits or Limits(), together=together)
        ended: list[int] = []

        async def one(number: int, job: Rows) -> Any:
            try:
                async with batcher.place():
                    return (await batcher.pooled(encoder, job)).ravel().tolist()  # type: ignore[arg-type]
            finally:
                ended.append(number)

        results = await asyncio.gather(*(one(*pair) for pair in enumerate(jobs)), return_exceptions=True)
        assert batcher.inside == 0
        await batcher.close()
        return results, ended

    return asyncio.run(run())


def test_small_requests_share_a_batch_and_get_their_own_rows() -> None:
    encoder = Sums()
    results, _ = ask(encoder, [rows(1), rows(2, 3), rows(4)])
    assert results == [[1], [2, 3], [4]]
    assert encoder.batches == [[4, 4, 4], [4]]  # ten tokens are reached with the third text


def test_a_large_request_takes_turns_with_small_ones() -> None:
    encoder = Sums()
    results, ended = ask(encoder, [rows(*range(30)), rows(100), rows(200)])
    assert results == [list(range(30)), [100], [200]]
    assert ended == [1, 2, 0]
    assert max(map(len, encoder.batches)) == 3


def test_without_sharing_each_request_is_computed_by_itself() -> None:
    encoder = Sums()
    results, ended = ask(encoder, [rows(*range(8)), rows(100)], together=False)
    assert results == [list(range(8)), [100]]
    assert encoder.batches == [[4] * 8, [4]]
    assert ended == [0, 1]


def test_what_would_wait_too_long_is_refused_and_the_others_are_answered() -> None:
    results, _ = ask(Sums(), [rows(1), rows(2), rows(3)], Limits(waiting_requests=2))
    assert results[:2] == [[1], [2]]
    assert (results[2].status, results[2].code) == (429, "rate_limit_exceeded")
    results, _ = ask(Sums(), [rows(1), rows(2), rows(3)], Limits(waiting_tokens=8))
    assert results[:2] == [[1], [2]]
    assert results[2].status == 429
    results, _ = ask(Sums(), [rows(1, length=99)], Limits(waiting_tokens=8))
    assert results == [[1]]  # alone it waits behind nobody


def test_a_failure_is_the_answer_of_those_in_its_batch_alone() -> None:
    encoder = Sums()

    async def run() -> None:
        batcher = Batcher(Limits())
        encoder.fails = True
        with pytest.raises(ZeroDivisionError):
            await batcher.pooled(encoder, rows(*range(9)))  # type: ignore[arg-type]
        encoder.fails = False
        assert (await batcher.pooled(encoder, rows(5))).tolist() == [[5]]  # type: ignore[arg-type]
        assert encoder.batches == [[4]]
        await batcher.close()

    asyncio.run(run())


def test_who_waits_too_long_is_told_and_not_computed() -> None:
    encoder = Sums()
    encoder.go.clear()

    async def run() -> None:
        batcher = Batcher(Limits(timeout_s=0.05))

        async def one(number: int) -> None:
            async with batcher.place():
                await batcher.pooled(encoder, rows(*range(number)))  # type: ignore[arg-type]

        for error in await asyncio.gather(one(3), one(4), return_exceptions=True):
            assert isinstance(error, RequestError)
            assert error.status == 503
        encoder.go.set()
        assert batcher.inside == 0
        await batcher.close()

    asyncio.run(run())
    assert len(encoder.batches) <= 1


def test_who_waits_for_another_encoder_keeps_the_place() -> None:
    queries, documents = Sums(), Sums()

    async def run() -> None:
        batcher = Batcher(Limits())

        async def caller() -> None:
            while not documents.batches and len(queries.batches) < 200:
                await batcher.pooled(queries, rows(1))  # type: ignore[arg-type]

        callers = [asyncio.create_task(caller()) for _ in range(8)]  # at no moment does no query wait
        await asyncio.sleep(0)
        await batcher.pooled(documents, rows(3))  # type: ignore[arg-type]
        assert len(queries.batches) <= len(callers)
        await asyncio.gather(*callers)
        await batcher.close()

    asyncio.run(run())
