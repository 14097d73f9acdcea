"""Commands in processes of their own, ended by themselves or killed with SIGKILL; for tests of interrupted runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python -m` with the arguments, on one thread; variables are added to the environment."""
    command = [sys.executable, "-m", *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; fails with its error if it did not end well."""
    printed, error = process.communicate()
    assert process.returncode == 0, error
    return printed


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool], *, timeout_s: float = 900) -> None:
    """SIGKILL as soon as something is seen on disk; the run must not have ended by itself."""
    until = time.monotonic() + timeout_s
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
