"""The workers of a running cluster as its driver sees them: how many, who joined, who is held back or ended by Dask.

Its loop asks without waiting for the answer: the driver has chunks to deliver meanwhile. At the end of the module is
what the board of a run is told: who is there, and what a worker says of itself.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError
from concurrent.futures import Future as Answer
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import dask
import psutil
from dask.utils import parse_timedelta
from distributed import Client, get_worker

from teachonce.cluster.scheduler_check import MEMORY_HINT, WorkerFacts, acquaintances, ask, gigabytes, judge
from teachonce.core.devices import device_words
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault, IncompleteError
from teachonce.watching.workers import Presence, WorkerMark

LOOK_EVERY = 1.0  # seconds between looks at the workers
ANSWER_SECONDS = 20
PRESENCE_SECONDS = 5.0  # the board of a run waits no longer for the scheduler
NOTE_EVERY = 60.0
HELD_BACK = 60.0  # seconds in which Dask gives no task to any worker, before the run ends
MOST_ENDED = 3  # workers that Dask ends for their memory without a single result in between, before the run ends
PATIENCE_KEY = "teachonce.patience"
PATIENCE = "10 minutes"
AGAIN = "run the same command again: what is committed is kept"
ENDED_TOPIC = "worker-restart-memory"  # under which Dask's nannies log that they ended a worker


class Supervisor(Protocol):
    """What watches where workers come from, such as batch jobs."""

    def news(self) -> Iterable[str]:
        """Notes that were not given before; raises an error of ours where no worker can be hoped for."""

    def why_none(self) -> str:
        """Why workers have not joined, in a few words; empty where that is not known."""


_SUPERVISORS: WeakKeyDictionary[Any, Supervisor] = WeakKeyDictionary()  # by Dask's cluster


def supervise(cluster: Any, supervisor: Supervisor) -> None:
    """From now on, tasks on this cluster pass on what its supervisor says, and end where it has no hope."""
    _SUPERVISORS[cluster] = supervisor


class Workers:
    """The cluster's workers, looked at now and then.

    Args:
        client: of the cluster.
        reporter: receives what a person should know.
    """

    def __init__(self, client: Client, reporter: Reporter) -> None:
        self.threads = 0
        self._here = 0
        self._client, self._reporter = client, reporter
        self._asked: Answer[tuple[dict[str, int], list[str]]] | None = None
        self._asked_at = -LOOK_EVERY
        self._greeted: Answer[dict[str, tuple[WorkerFacts, Any]]] | None = None
        self._ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._last_ended, self._in_vain = "", 0
        self._held: dict[str, float] = {}
        self._held_said: set[str] = set()
        self._fine_at = self._noted_at = time.monotonic()
        self._trouble = "no worker has joined"
        self._patience = parse_timedelta(dask.config.get(PATIENCE_KEY, PATIENCE))
        cluster = client.cluster
        self._supervisor = None if cluster is None else _SUPERVISORS.get(cluster)
        client.subscribe_topic(ENDED_TOPIC, self._note_ended)

    def look_in(self) -> float:
        """Return the seconds until there may be something new."""
        return 0.05 if self._asked is not None else LOOK_EVERY

    def bring_results(self) -> None:
        """A task has ended well: what went wrong before it was not in vain."""
        self._in_vain = 0

    def why_dead(self) -> str:
        """Why workers died, as far as is known."""
        return self._last_ended or "out of memory?"

    def look(self) -> None:
        """Take the answers that have come, and ask again.

        Raises:
            EnvironmentFault: a worker is not fit for the work: it lacks teachonce or memory.
            IncompleteError: the scheduler is gone, or there has been no worker for longer than `teachonce.patience`.
        """
        now = time.monotonic()
        if self._client.status not in ("running", "connecting"):
            raise lost(self._client, None)
        if self._asked is None and now - self._asked_at >= LOOK_EVERY:
            self._asked_at = now
            self._asked = self._begun(_state(self._client))
        elif self._asked is not None and self._asked.done():
            self._take(self._asked, now)
            self._asked = None
        elif self._asked is not None and now - self._asked_at > ANSWER_SECONDS:
            self._trouble = f"the scheduler at {_address(self._client)} does not answer"
        for text in self._supervisor.news() if self._supervisor else ():
            self._reporter.note(text)
        self._meet()
        self._count_ended()
        self._require_some_at_work(now)
        self._complain(now)

    def _begun(self, question: Coroutine[Any, Any, Any]) -> Answer[Any]:
        return asyncio.run_coroutine_threadsafe(question, self._client.loop.asyncio_loop)

    def _take(self, answer: Answer[tuple[dict[str, int], list[str]]], now: float) -> None:
        try:
            threads, held = answer.result()
        except (OSError, CancelledError) as problem:  # the scheduler may be back at the next look
            self._trouble = f"the scheduler at {_address(self._client)} does not answer: {problem}"
            return
        self.threads, self._here = sum(threads.values()), len(threads)
        self._held = {address: self._held.get(address, now) for address in held}
        if self.threads:
            self._fine_at = now
        else:
            self._trouble = "there is no worker"
        known = acquaintances(self._client).facts
        new = [address for address in threads if address not in known]
        if new and self._greeted is None:
            self._greeted = self._begun(ask(self._client, new))

    def _meet(self) -> None:
        """Judge the workers that have answered since they joined."""
        if self._greeted is None or not self._greeted.done():
            return
        answered, self._greeted = self._greeted, None
        try:
            answers = answered.result()
        except (OSError, CancelledError, KeyError):  # they have left, or the scheduler is away
            return
        judge(self._client, answers, self._reporter)

    def _note_ended(self, event: tuple[float, dict[str, Any]]) -> None:
        """Dask's client calls this in its own thread."""
        self._ended.put((str(event[1].get("worker")), int(event[1].get("rss", 0))))

    def _count_ended(self) -> None:
        while not self._ended.empty():
            address, held = self._ended.get()
            worker = acquaintances(self._client).facts.get(address, WorkerFacts(address, ""))
            limit = f" of {gigabytes(worker.memory_limit)}" if worker.memory_limit else ""
            self._last_ended = f"Dask ended {worker} for its memory: it held {gigabytes(held)}{limit}"
            self._in_vain += 1
            if self._in_vain >= MOST_ENDED:
                raise EnvironmentFault(
                    f"{self._last_ended}; {self._in_vain} workers ended so, and no task in between", hint=MEMORY_HINT
                )
            self._reporter.note(self._last_ended)

    def _require_some_at_work(self, now: float) -> None:
        """Say which workers Dask holds back because their memory is nearly full, and give up where all are.

        Raises:
            EnvironmentFault: no worker has been given a task for a minute.
        """
        known = acquaintances(self._client).facts
        for address, since in self._held.items():
            if address in self._held_said or now - since < HELD_BACK / 6:
                continue
            self._held_said.add(address)
            worker = known.get(address, WorkerFacts(address, ""))
            text = f"Dask gives no tasks to {worker}, because its memory is nearly full"
            self._reporter.note(text + (f": {gigabytes(worker.memory_limit)}" if worker.memory_limit else ""))
        longest = min((now - since for since in self._held.values()), default=0.0)
        if longest > HELD_BACK and len(self._held) == self._here:
            raise EnvironmentFault(
                f"Dask has given no task to any worker for {longest:.0f} s: the memory of all {self._here} is nearly "
                "full",
                hint=MEMORY_HINT,
            )

    def _complain(self, now: float) -> None:
        alone = now - self._fine_at
        reason = self._supervisor.why_none() if self._supervisor else ""
        reason = f"; {reason}" if reason else ""
        if alone > self._patience:
            raise IncompleteError(
                f"{self._trouble}, for {alone:.0f} s now{reason}",
                hint=f"{AGAIN}; patience = '2 hours' in the cluster's description waits longer, "
                "and so does DASK_TEACHONCE__PATIENCE='2 hours'",
            )
        if alone > NOTE_EVERY and now - self._noted_at > NOTE_EVERY:
            self._noted_at = now
            self._reporter.note(
                f"{self._trouble}, for {alone:.0f} s now; giving up after {self._patience:.0f} s{reason}"
            )


async def _state(client: Client) -> tuple[dict[str, int], list[str]]:
    """Threads of each worker by address, and those to which Dask gives no tasks for their memory's sake."""
    threads: dict[str, int] = await client.scheduler.ncores()
    running = await client.scheduler.ncores_running()
    held = []
    if len(running) < len(threads):
        there = (await client.scheduler.identity())["workers"]
        held = [address for address in threads if there.get(address, {}).get("status") == "paused"]
    return threads, held


def _address(client: Client) -> str:
    return client.scheduler.address if client.scheduler is not None else "its address"


def lost(client: Client, problem: CancelledError | None) -> IncompleteError:
    """The error of a run whose scheduler is gone, or whose tasks somebody else cancelled."""
    if problem is None or getattr(problem, "reason", "") == "scheduler-connection-lost":
        return IncompleteError(
            f"the connection to the scheduler at {_address(client)} was lost: it ended, or the network did",
            hint=f"start a scheduler and {AGAIN}",
        )
    return IncompleteError(f"somebody cancelled this run's tasks on the scheduler: {problem}", hint=AGAIN)


def present_workers(client: Client) -> dict[str, Presence] | None:
    """The workers by name, for any thread; None where the scheduler does not answer within seconds."""
    try:
        question = client.scheduler.identity(n_workers=-1)
        answer = asyncio.run_coroutine_threadsafe(question, client.loop.asyncio_loop).result(PRESENCE_SECONDS)
    except (OSError, TimeoutError, CancelledError, AttributeError, RuntimeError):  # a client that is being closed
        return None
    return {str(worker["name"]): _presence(worker) for worker in answer["workers"].values()}


def _presence(worker: dict[str, Any]) -> Presence:
    memory = (worker.get("metrics") or {}).get("memory")
    return Presence(host=str(worker.get("host", "")), memory_bytes=memory, beat=float(worker.get("last_seen") or 0.0))


def mark_of_this_worker(device: str) -> WorkerMark:
    """Who runs the task that asks; outside Dask, this process.

    Args:
        device: what the task computed on, as torch names it.
    """
    try:
        name = str(get_worker().name)
    except ValueError:  # the caller is no Dask worker
        name = f"process {os.getpid()}"
    return WorkerMark(
        name=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device_words(device),
        memory_bytes=psutil.Process().memory_info().rss,
    )


def messages(client: Client, topic: str) -> queue.SimpleQueue[dict[str, Any]]:
    """What workers log under a topic from now on; Dask's client puts it there in a thread of its own."""
    came: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    client.subscribe_topic(topic, lambda event: came.put(event[1]))
    return came
