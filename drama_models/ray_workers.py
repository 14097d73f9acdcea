"""Work spread by Ray Data over processes of this machine, or of all machines of a Ray cluster.

Each process makes its worker once and calls it with one task after another. Ray starts a process that died again, and
its tasks with it, so doing a task twice must do no harm. Tasks wait in Ray's object store, which moves to disk what it
has no memory for. Without a cluster a local one is started, which listens on the loopback address only.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_address
from socket import create_connection
from typing import TYPE_CHECKING, Any, Literal

from drama_models import errors
from drama_models.errors import ClusterError, DramaError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Worker = Callable[[Any], Any]
    """From a task to its result, both made of what JSON has."""

Engine = Literal["local", "ray"]
ADDRESS_VARIABLE = "RAY_ADDRESS"
# Named for the systems on which it is the default; everywhere it keeps a local cluster on the loopback address.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
OBJECT_STORE_BYTES = 1 << 29
CONNECTION_TIMEOUT_S = 10.0
TASK_ATTEMPTS = 4
THREADS_VARIABLES = ("OMP_NUM_THREADS", "DRAMA_THREADS")


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster: the one this process uses, else that of RAY_ADDRESS, else a new local one.

    Args:
        workers: processes that a local cluster must have room for.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster is not there, or a local one could be reached from other machines.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        if address := os.environ.get(ADDRESS_VARIABLE):
            _check_it_answers(address)
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start_here(ray, workers)
    except ConnectionError as error:
        raise ClusterError(
            f"There is no Ray cluster at ${ADDRESS_VARIABLE}={os.environ.get(ADDRESS_VARIABLE)} ({error}); start it, "
            "or unset the variable to use this machine."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def map_on_ray(
    make_worker: Callable[[], Worker], tasks: Iterable[Any], workers: int, *, gpus: int = 0
) -> Iterator[tuple[int, Any]]:
    """Number and result of each task, as they get ready.

    Args:
        make_worker: called once in each process; Ray sends it there.
        tasks: all of them are read before the first result comes.
        workers: processes at work at the same time.
        gpus: that each of them takes.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster is not there, or a task's process died again and again.
        DramaError: as a worker raised it.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be positive; try 2.")
    with ray_cluster(workers) as ray, _silence(ray):
        blocks = [ray.put(_block(number, task)) for number, task in enumerate(tasks)]
        if not blocks:
            return
        done = ray.data.from_arrow_refs(blocks).map(
            _Process,
            fn_constructor_args=(make_worker,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
            **({"num_gpus": gpus} if gpus else {"num_cpus": _processors(ray, workers)}),
            max_restarts=-1,
            max_task_retries=TASK_ATTEMPTS - 1,
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise _error_again(*json.loads(row["error"]))
                yield int(row["number"]), json.loads(row["result"])
        except ray.exceptions.RayActorError as error:
            raise ClusterError(
                f"A worker of Ray died at the same task, once for each of {TASK_ATTEMPTS} attempts; it may need more "
                "memory, so try fewer workers. What was done is kept; the same command goes on from there."
            ) from error


class _Process:
    """What Ray Data keeps in each process; the worker is made with the first task, so that its errors are a result."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker

    @cached_property
    def _worker(self) -> Worker:
        processors = _import_ray().get_runtime_context().get_assigned_resources().get("CPU", 1)
        for variable in THREADS_VARIABLES:
            os.environ.setdefault(variable, str(max(1, int(processors))))
        return self._make_worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result, error = json.dumps(self._worker(json.loads(row["task"]))), ""
        except DramaError as raised:
            result, error = "", json.dumps([type(raised).__name__, str(raised)])
        return {"number": row["number"], "result": result, "error": error}


def _import_ray() -> Any:
    """Ray with its data; a variable that is read at that moment keeps a local cluster on the loopback address."""
    for name, value in (QUIET if os.environ.get(ADDRESS_VARIABLE) else QUIET | LOOPBACK).items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("engine='ray'", "ray") from None
    return ray


def _check_it_answers(address: str) -> None:
    """Fail at once where nobody listens; Ray would try for minutes. Addresses without a port are Ray's to resolve.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            create_connection((host.strip("[]"), int(port)), timeout=CONNECTION_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from None


def _start_here(ray: Any, workers: int) -> None:
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        name, value = next(iter(LOOPBACK.items()))
        raise ClusterError(
            f"Ray was imported before it could be kept to this machine; set {name}={value} before that, or start it "
            "with ray.init()."
        )
    ray.init(
        address="local",
        num_cpus=max(workers, os.cpu_count() or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _processors(ray: Any, workers: int) -> int:
    """Of each worker, so that all of them together have those of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)


@contextmanager
def _silence(ray: Any) -> Iterator[None]:
    """Let Ray Data say nothing but warnings; what goes forward is said by who asked for it."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, log.level
    context.enable_progress_bars, context.print_on_execution_start = False, False
    ray.util.debug.log_once("ray_data_progress_manager_disabled")  # it has been said, so it is not said again
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        log.setLevel(before[2])


def _block(number: int, task: Any) -> Any:
    import pyarrow

    return pyarrow.table({"number": [number], "task": [json.dumps(task)]})


def _error_again(name: str, message: str) -> DramaError:
    """An error of a worker in this process; its class is known by name, and need not be made of one message."""
    kind: type[DramaError] = getattr(errors, name, DramaError)
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error
