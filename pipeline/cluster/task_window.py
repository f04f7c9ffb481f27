"""Run tasks on Dask as futures in a bounded window, and bear what clusters do to them.

This module knows nothing of what a task does; a task must be idempotent and return something small.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distributed import Client, KilledWorker
from distributed.client import Future

from teachonce.cluster.carrying import carried
from teachonce.cluster.scheduler_check import PYTHONS, require_fit_workers
from teachonce.cluster.worker_memory import trim_memory
from teachonce.cluster.workers import AGAIN, ANSWER_SECONDS, Workers, lost
from teachonce.core.devices import device_fault
from teachonce.core.progress import Reporter, Silent
from teachonce.errors import EnvironmentFault, IncompleteError, TeachOnceError

R = TypeVar("R")


RETRY_AFTER = (1.0, 10.0)  # seconds before each further try of a task that raised something other than our own errors
ALLOWED_FAILURES = 10  # a task that merely waited on a worker that died counts as suspicious too; Dask's default is 3
QUEUED_PER_THREAD = 2
FEWEST_QUEUED = 4  # tasks that are queued before any worker exists: a cluster grows because tasks wait


def run_tasks(
    client: Client,
    task: Callable[..., R],
    arguments: Iterable[tuple[Any, ...]],
    name: str,
    reporter: Reporter | None = None,
    each_look: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[R]:
    """Yield the results of `task(*a)` for every `a`: tasks begin in their order, results come as they are ready.

    At any time twice as many tasks as the cluster has threads are under way, while workers come and go. If a worker
    dies, other workers run its tasks again. A task that raised is tried again after a while. A task whose workers died
    ALLOWED_FAILURES times is tried once more at the end with no other task beside it, because every task that a dying
    worker held is blamed for its death.

    Args:
        each_look: called at least once a second while tasks are under way, also while none of them ends; what it raises
            ends the run.
        stopping: once it says so, no further task begins; those under way end, unless no worker is there to end them.

    Raises:
        TeachOnceError: the first of our own errors that a task raised, as it was raised, or what the cluster's
            supervisor raises where no worker can be hoped for.
        EnvironmentFault: a worker lacks teachonce or has another version of it, or may use less memory than it takes.
        IncompleteError: some tasks failed on every try (after all others are done), the scheduler is gone, or there has
            been no worker for longer than Dask's setting `teachonce.patience` (10 minutes).
    """
    window: _Window[R] = _Window(client, task, name, reporter or Silent())
    todo, exhausted = enumerate(arguments), False
    try:
        while True:
            window.look()
            each_look()
            if stopping() and window.is_without_workers():
                return
            exhausted = exhausted or stopping() or window.fill(todo)
            window.submit_due(alone=exhausted)
            if exhausted and window.is_empty():
                break
            yield from window.results()
    finally:
        window.release()
    window.require_none_failed()


@dataclass(eq=False)
class _Item:
    """One task and what has happened to it."""

    number: int
    args: tuple[Any, ...]
    errors: int = 0
    """How often the task raised."""
    deaths: int = 0
    """How many workers died while they held the task."""
    alone: bool = False
    due: float = 0.0


@dataclass(frozen=True)
class _Refused:
    """One of our own errors as a result, or a device that fails: the same on every try, so Dask must not try again."""

    problem: TeachOnceError


def _attempt(task: Callable[..., R], *args: Any) -> R | _Refused:
    try:
        return task(*args)
    except TeachOnceError as problem:
        return _Refused(problem)
    except RuntimeError as problem:
        fault = device_fault(problem)
        if fault is None:
            raise
        return _Refused(fault)
    finally:
        trim_memory()


class _Window(Generic[R]):
    """The tasks under way, the tasks to be tried again, and what is known of the workers."""

    def __init__(self, client: Client, task: Callable[..., R], name: str, reporter: Reporter) -> None:
        self.failed: list[str] = []
        self._client, self._task, self._name, self._reporter = client, task, name, reporter
        self._running: dict[str, tuple[_Item, Future]] = {}
        self._waiting: list[_Item] = []
        self._suspects: list[_Item] = []
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._workers = Workers(client, reporter)

    def look(self) -> None:
        """Notice workers that came and went.

        Raises:
            EnvironmentFault: a worker that came is not fit for the work.
            IncompleteError: no worker is there, or the scheduler is gone.
        """
        self._workers.look()

    def fill(self, todo: Iterator[tuple[int, tuple[Any, ...]]]) -> bool:
        """Hand tasks to Dask while there is room; returns whether none is left."""
        size = max(FEWEST_QUEUED, QUEUED_PER_THREAD * self._workers.threads)
        while len(self._running) + len(self._waiting) < size:
            following = next(todo, None)
            if following is None:
                return True
            self.submit(_Item(*following))
        return False

    def is_without_workers(self) -> bool:
        """Whether no worker is known that could end the tasks under way."""
        return not self._workers.threads

    def is_empty(self) -> bool:
        """Whether every task that was handed to Dask has ended."""
        return not (self._running or self._waiting or self._suspects)

    def submit(self, item: _Item) -> None:
        """Hand a task to Dask."""
        tries = item.errors + item.deaths + item.alone
        key = f"{self._name}-{item.number}" + (f"-again{tries}" if tries else "")
        # Dask promises no order of tasks that are submitted one by one; an older task must not wait for a newer one.
        future = self._client.submit(
            *carried(_attempt, self._task, *item.args), key=key, pure=False, priority=-item.number
        )
        self._running[key] = item, future
        future.add_done_callback(self._done.put)

    def submit_due(self, *, alone: bool) -> None:
        """Hand tasks over whose time to be tried again has come.

        If no other task is left, one of the tasks that lost their workers is handed over.
        """
        now = time.monotonic()
        for item in [item for item in self._waiting if item.due <= now]:
            self._waiting.remove(item)
            self.submit(item)
        if alone and self._suspects and not self._running and not self._waiting:
            self.submit(self._suspects.pop())

    def results(self) -> Iterator[R]:
        """Yield the result of the next task that ends, if a task ends soon."""
        try:
            future = self._done.get(timeout=self._workers.look_in())
        except queue.Empty:
            return
        item, _ = self._running.pop(future.key)
        try:
            result = future.result(timeout=ANSWER_SECONDS)
        except KilledWorker as problem:
            self._blame(item, problem)
        except CancelledError as problem:  # Dask raises this when it has lost the scheduler
            raise lost(self._client, problem) from problem
        except Exception as problem:  # noqa: BLE001 - whatever a task raises must be counted, not lost
            self._try_again(item, problem)
        else:
            if isinstance(result, _Refused):
                raise result.problem
            self._workers.bring_results()
            yield result
        finally:
            future.release()

    def require_none_failed(self) -> None:
        """Refuse an end at which tasks have failed on every try.

        Raises:
            IncompleteError: says how many, and the first.
        """
        if self.failed:
            raise IncompleteError(
                f"{len(self.failed)} chunks failed on every try; the first: {self.failed[0]}", hint=AGAIN
            )

    def release(self) -> None:
        """Take back the tasks that have not ended."""
        for _, future in self._running.values():
            future.release()

    def _try_again(self, item: _Item, problem: Exception) -> None:
        if isinstance(problem, PYTHONS):
            self._explain(problem)
        if item.errors < len(RETRY_AFTER):
            item.due = time.monotonic() + RETRY_AFTER[item.errors]
            item.errors += 1
            self._waiting.append(item)
        else:
            self.failed.append(f"{self._name}-{item.number}: {type(problem).__name__}: {problem}")

    def _explain(self, problem: Exception) -> None:
        """Say which worker has another installation than the driver, if one has.

        Raises:
            EnvironmentFault: a worker lacks teachonce, has another version of it, or lacks another module.
        """
        require_fit_workers(self._client, self._reporter)
        if isinstance(problem, ImportError):
            raise EnvironmentFault(
                f"a worker cannot import {problem.name or 'a module'}, which its tasks need: {problem}",
                hint="install the same packages on all workers as here",
            ) from problem

    def _blame(self, item: _Item, problem: KilledWorker) -> None:
        if item.alone:
            self.failed.append(
                f"{self._name}-{item.number}: every worker that held it died, "
                f"{item.deaths + problem.allowed_failures + 1} in all ({self._workers.why_dead()})"
            )
            return
        item.deaths += problem.allowed_failures + 1
        if problem.allowed_failures < ALLOWED_FAILURES:
            self._reporter.note(
                f"{self._name}-{item.number}: {problem.allowed_failures + 1} workers died while they held it "
                f"({self._workers.why_dead()}); handed over again. distributed.scheduler.allowed-failures is "
                f"{problem.allowed_failures} at this scheduler: {ALLOWED_FAILURES} suits clusters that take workers "
                "away"
            )
        item.alone = item.deaths > ALLOWED_FAILURES
        if item.alone:
            self._suspects.append(item)
        else:
            self._waiting.append(item)
