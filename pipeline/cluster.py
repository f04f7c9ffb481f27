"""Run chunk tasks on Dask: a local cluster, and futures in a bounded window.

It knows nothing of what a task does; a task must be idempotent and return something small.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed
from distributed.client import Future

from teachonce.errors import IncompleteError, TeachOnceError

R = TypeVar("R")
RETRIES = 2  # of a task that raised something else than our own errors
ALLOWED_FAILURES = 10  # a task that merely waited on a worker that died counts as suspicious too; Dask gives up at 3
QUEUED_PER_WORKER = 2
# Dask runs a task in a thread, and glibc gives that thread an arena whose large buffers go back to the kernel after
# every batch, to be page-faulted in again. One arena that keeps them: 117 images/s instead of 66 on two small towers.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Worker processes on this machine, one task at a time each, gone when the block ends.

    The workers end by themselves within seconds when this process is killed.
    """
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.worker.memory.terminate": False,  # models and pinned buffers are memory Dask knows nothing of
        "distributed.worker.memory.pause": False,
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,  # must be there before the process starts
        "distributed.comm.timeouts.connect": "60s",
        "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
        "logging.distributed": "error",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def warm_up(client: Client, task: Callable[[], None]) -> list[Future]:
    """Start `task` on every worker and return at once; keep the result, or Dask forgets the tasks."""
    workers = client.scheduler_info()["workers"]
    return [client.submit(task, workers=[address], pure=False) for address in workers]


def run_tasks(client: Client, task: Callable[..., R], arguments: Sequence[tuple[Any, ...]], name: str) -> Iterator[R]:
    """Results of `task(*a)` for every `a`, as they come; a future is released as soon as its result is seen.

    Raises:
        TeachOnceError: the first of our own errors that a task raised, as it was raised.
        IncompleteError: a task failed in another way on every try.
    """
    todo = iter(enumerate(arguments))
    window = QUEUED_PER_WORKER * max(1, len(client.scheduler_info()["workers"]))
    running = as_completed([])

    def submit_next() -> bool:
        item = next(todo, None)
        if item is None:
            return False
        number, args = item
        running.add(client.submit(_attempt, task, *args, key=f"{name}-{number}", pure=False, retries=RETRIES))
        return True

    pending = sum(submit_next() for _ in range(window))
    failed: list[str] = []
    while pending:
        future = next(running)
        pending -= 1
        result = _result(future, failed)
        future.release()
        pending += submit_next()
        if result is not None:
            yield result
    if failed:
        raise IncompleteError(
            f"{len(failed)} chunks failed on every try; the first: {failed[0]}",
            hint="run the same command again: what is committed is kept",
        )


@dataclass(frozen=True)
class _Refused:
    """One of our own errors as a result: it would be the same on every try, so Dask must not try again."""

    problem: TeachOnceError


def _attempt(task: Callable[..., R], *args: Any) -> R | _Refused:
    try:
        return task(*args)
    except TeachOnceError as problem:
        return _Refused(problem)


def _result(future: Future, failed: list[str]) -> Any:
    try:
        result = future.result()
        if isinstance(result, _Refused):
            raise result.problem
        return result
    except TeachOnceError:
        raise
    except KilledWorker:
        failed.append(f"{future.key}: its worker process died {ALLOWED_FAILURES} times (out of memory?)")
    except Exception as problem:  # noqa: BLE001 - whatever a task raises must be counted, not lost
        failed.append(f"{future.key}: {type(problem).__name__}: {problem}")
    return None


def default_threads(workers: int) -> int:
    """CPU threads a worker may use: an equal share of the cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)
