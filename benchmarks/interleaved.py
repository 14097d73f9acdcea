"""Several systems in turn: each in a process of its own, round by round, so that noise falls on all of them alike."""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

    System = tuple[Callable[..., Callable[[], Any]], tuple[Any, ...]]


@dataclass
class Measured:
    """What one system took."""

    seconds: list[float] = field(default_factory=list)
    """Of each round."""
    results: list[Any] = field(default_factory=list)
    """What each round returned."""
    peak_mib: float = 0.0
    """Largest resident memory of its process."""

    @property
    def result(self) -> Any:
        """What the last round returned; None before the first."""
        return self.results[-1] if self.results else None


def interleave(
    systems: Mapping[str, tuple[Callable[..., Callable[[], Any]], tuple[Any, ...]]], rounds: int
) -> dict[str, Measured]:
    """Time every system in every round, in alternating order.

    Args:
        systems: by name, a module-level function that sets a system up, and its arguments; what it returns is timed.
        rounds: times that each system runs.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (set_up, arguments) in systems.items():
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=_hold, args=(set_up, arguments, theirs), daemon=True)
        process.start()
        theirs.close()  # so that a system that dies ends the wait below
        processes.append(process)
        pipes[name].recv()
    measured = {name: Measured() for name in systems}
    for number in range(rounds):
        for name in list(systems) if number % 2 == 0 else reversed(list(systems)):
            pipes[name].send("run")
            seconds, result = pipes[name].recv()
            measured[name].seconds.append(seconds)
            measured[name].results.append(result)
            print(f"round {number + 1}/{rounds} | {name} | {seconds:.2f} s", file=sys.stderr, flush=True)  # noqa: T201
    for name, pipe in pipes.items():
        pipe.send("stop")
        measured[name].peak_mib = pipe.recv()
    for process in processes:
        process.join()
    return measured


def _hold(set_up: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], orders: Connection) -> None:
    run = set_up(*arguments)
    orders.send("ready")
    while orders.recv() == "run":
        began_s = time.perf_counter()
        result = run()
        orders.send((time.perf_counter() - began_s, result))
    orders.send(peak_mib())


def peak_mib() -> float:
    """Largest resident memory of this process so far; `ru_maxrss` would count what its parent held when it started."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
