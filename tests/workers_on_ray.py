"""Workers that wait until one of them is killed, fail or die; in a module that a new process loads quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from drama_models import Encoder
from drama_models.errors import CollectionError

KILLED = "killed"
FAIL, DIE = -1, -2  # tasks


def wait_for_the_kill(notes: Path) -> None:
    """Leave a file with the number of this process, and go on when somebody has noted that one of them was killed."""
    (notes / str(os.getpid())).touch()
    until = time.monotonic() + 120
    while not (notes / KILLED).exists():
        assert time.monotonic() < until
        time.sleep(0.02)


class WaitingEncoder(Encoder):
    """The same encoder, which another process loads as one that waits too."""

    def __init__(self, inner: Encoder, notes: Path) -> None:
        self.__dict__.update(inner.__dict__)
        self.again = partial(_load, inner.again, notes)
        self.notes = notes

    def encode_documents(self, documents: Any, **_: Any) -> Any:
        wait_for_the_kill(self.notes)
        return super().encode_documents(documents)


def _load(again: Callable[[], Encoder], notes: Path) -> Encoder:
    return WaitingEncoder(again(), notes)


def fragile_worker() -> Callable[[int], int]:
    """Does some tasks, and not others."""

    def work(task: int) -> int:
        if task == FAIL:
            raise CollectionError("No such document; look at the corpus.")
        if task == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        return task + 1

    return work
