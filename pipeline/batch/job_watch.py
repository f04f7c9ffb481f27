"""What becomes of batch jobs between their submission and the first sign of their worker.

dask-jobqueue submits jobs and replaces those whose worker was lost. What it does not see is done here: a job that was
refused is submitted again after a while, a job that ended before its worker joined is replaced, and a job that can
never start, or a description whose jobs always end at once, ends the run in the queue's own words.

This module asks a `JobQueue`, which knows one batch system.
"""

from __future__ import annotations

import asyncio
import queue
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dask
from dask.utils import parse_timedelta

from teachonce.batch.job_guard import JobGuard
from teachonce.errors import EnvironmentFault

LOOK_KEY, LOOK_EVERY = "teachonce.look-at-queue-every", "10s"
AGAIN_KEY, AGAIN_AFTER = "teachonce.submit-again-after", "30s"
LONGEST_PAUSE = 600.0  # seconds between two tries to submit a job
MOST_EARLY_ENDS = 3  # jobs in a row that ended before their worker joined, before any worker has ever joined
MENDING = (
    "mend what the log says: job_script_prologue, python, memory; look whether compute nodes see the same Python "
    "environment as this machine"
)
NOT_JOINED = "they may still import, or not reach this machine; their logs say it, `interface` names the network"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What a batch system says of a job."""

    words: str
    """The state and its reason, as the batch system writes them."""
    waits: bool = False
    ended: bool = False
    cancelled: bool = False
    """It ended because somebody cancelled it."""
    hopeless: bool = False
    """It waits for what can never be."""
    taken_away: bool = False
    """The batch system ended it: for its time, its memory, its node, or a job that goes before."""


@dataclass(frozen=True, kw_only=True)
class JobLog:
    """The end of what a job wrote."""

    path: str = ""
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" {self.path}" if self.path else ""
        return f"its log{where} ends:\n  " + "\n  ".join(self.lines) if self.lines else f"its log{where} says nothing"


class JobQueue(Protocol):
    """A batch system. The coroutines run in the loop of Dask's cluster and must not block it."""

    name: str
    cancel_command: tuple[str, ...]
    """The program that cancels the job whose id is its last argument."""
    asks_for: str
    """The keys of a description that decide whether a job can start."""

    async def look(self, jobs: Sequence[str]) -> dict[str, JobState] | None:
        """The state of each of these jobs that is still known; None where the batch system does not answer."""

    async def log_of(self, job: str, folders: Sequence[Path]) -> JobLog:
        """The end of a job's log, which lies in one of these folders where the batch system does not say where."""


@dataclass(eq=False)
class _Watched:
    """A job whose worker has not joined."""

    job: Any
    unknown: int = 0
    """Looks in a row at which the batch system did not know it."""


@dataclass(eq=False)
class _Held:
    """Jobs that are not there and count as there until a pause is over, because Dask replaces missing ones at once.

    The pause doubles with every failure in a row.
    """

    jobs: list[Any] = field(default_factory=list)
    failures: int = 0
    until: float = 0.0

    def hold(self, job: Any) -> float:
        """Hold a job, for a new pause where no other is held; returns the seconds that are left."""
        now = time.monotonic()
        if not self.jobs:
            first = parse_timedelta(dask.config.get(AGAIN_KEY, AGAIN_AFTER))
            self.until = now + min(LONGEST_PAUSE, first * 2**self.failures)
            self.failures = min(self.failures + 1, 10)
        self.jobs.append(job)
        return self.until - now

    def due(self) -> list[Any]:
        """The jobs whose pause is over; they are held no longer."""
        if time.monotonic() < self.until:
            return []
        jobs, self.jobs = self.jobs, []
        return jobs


class JobWatch:
    """Watches the jobs of one cluster. `news` and `why_none` are for the driver's thread, the rest for Dask's loop."""

    def __init__(self, jobs: JobQueue, folders: Sequence[Path] = ()) -> None:
        self.refusal = ""
        """Why the last job that was refused was refused; empty once a job was taken after it."""
        self.taken = 0
        """Jobs that were ever taken."""
        self._queue, self._folders, self._guard = jobs, tuple(folders), JobGuard(jobs.cancel_command)
        self._waiting: dict[str, _Watched] = {}  # by the name of the worker
        self._lost: list[str] = []  # jobs that were closed since the last look, whose workers had joined
        self._refused, self._replaced = _Held(), _Held()
        self._joined = self._early_ends = 0
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._fault: Exception | None = None
        self._words = ""

    def news(self) -> Iterator[str]:
        """What a person should know and was not told yet.

        Raises:
            EnvironmentFault: no job can ever start, or all end at once.
        """
        while not self._notes.empty():
            yield self._notes.get()
        if self._fault is not None:
            raise self._fault

    def why_none(self) -> str:
        """What the batch system says of the jobs whose workers have not joined; empty where it says nothing."""
        return self._words

    def submitted(self, job: Any) -> None:
        """The batch system took a job."""
        self.refusal = ""
        self.taken += 1
        self._refused.failures = 0
        self._waiting[job.name] = _Watched(job)
        self._guard.begun(job.job_id)

    def refused(self, job: Any, problem: Exception) -> None:
        """The batch system did not take a job."""
        self.refusal = in_its_words(problem)
        seconds = self._refused.hold(job)
        self._say_once(
            f"{self._queue.name} takes no further job: {self.refusal}; trying again in {seconds:.0f} s, then less "
            f"often, up to every {LONGEST_PAUSE / 60:.0f} minutes"
        )

    def closed(self, job: Any, *, cancelled: bool = True) -> None:
        """Dask closed a job, because its worker is gone or is not needed; whether the batch system took that in."""
        watched = self._waiting.get(job.name)
        if watched is not None and watched.job is job:
            del self._waiting[job.name]
        elif job.job_id:
            self._lost.append(job.job_id)
        if job.job_id and cancelled:
            self._guard.ended(job.job_id)

    def joined(self, name: str) -> None:
        """A worker of this name has joined the scheduler."""
        if self._waiting.pop(name, None) is not None:
            self._joined += 1
            self._early_ends = self._replaced.failures = 0

    def end(self) -> None:
        """Cancel what is left of the jobs."""
        self._guard.close()

    async def watch(self, cluster: Any) -> None:
        """Look at the jobs again and again, until the task is cancelled."""
        try:
            while True:
                await asyncio.sleep(parse_timedelta(dask.config.get(LOOK_KEY, LOOK_EVERY)))
                for job in [*self._refused.due(), *self._replaced.due()]:
                    _replace(cluster, job)
                await self._look(cluster)
        except Exception as problem:
            self._fault = problem  # without a watch, a job that ends early would be waited for in vain
            raise

    async def _look(self, cluster: Any) -> None:
        asked = {watched.job.job_id: watched for watched in self._waiting.values()}
        lost, self._lost = self._lost, []
        states = await self._queue.look([*asked, *lost]) if asked or lost else {}
        if states is None:
            self._words = f"{self._queue.name} does not answer"
            return
        for number in lost:
            if number in states and states[number].taken_away:
                words = states[number].words
                self._say_once(f"{self._queue.name} ended job {number}: {words}; another takes its place", key=words)
        for number, watched in asked.items():
            state = states.get(number)
            watched.unknown = 0 if state else watched.unknown + 1
            if self._waiting.get(watched.job.name) is not watched:
                continue  # its worker joined, or Dask closed it, while the batch system was asked
            if watched.unknown > 1 or (state and state.ended):
                await self._ended_early(cluster, watched, states)
            elif state and state.hopeless:
                self._cannot_start(cluster, number, state)
        self._words = self._summary([states[number] for number in asked if number in states])

    async def _ended_early(self, cluster: Any, watched: _Watched, states: Mapping[str, JobState]) -> None:
        """Replace a job that ended before its worker joined, or give up where none has ever joined."""
        job, number = watched.job, watched.job.job_id
        state = states.get(number, JobState(words="it is gone", ended=True))
        log = await self._queue.log_of(number, self._folders)
        if self._waiting.get(job.name) is not watched:
            return
        self.closed(job)
        ended = f"{self._queue.name}'s job {number} ended before its worker joined: {state.words}"
        if state.cancelled:
            self._say_once(f"{ended}; another takes its place")
        else:
            self._early_ends += 1
            others_start = any(not (other.waits or other.ended) for other in states.values())
            if self._early_ends >= MOST_EARLY_ENDS and not self._joined and not others_start:
                self._fault = EnvironmentFault(
                    f"{self._early_ends} jobs in a row ended before their worker joined; the last: {ended}; {log}",
                    hint=MENDING,
                )
                return
            self._say_once(f"{ended}; {log}", key=state.words)
        if self._early_ends < MOST_EARLY_ENDS:
            _replace(cluster, job)
        else:
            self._replaced.hold(job)

    def _cannot_start(self, cluster: Any, number: str, state: JobState) -> None:
        words = f"{self._queue.name}'s job {number} can never start: {state.words}"
        if cluster.scheduler.workers:
            self._say_once(f"{words}; the workers that are there go on", key=state.words)
        else:
            self._fault = EnvironmentFault(words, hint="change what the description asks for: " + self._queue.asks_for)

    def _summary(self, states: Sequence[JobState]) -> str:
        count = Counter(state.words for state in states if state.words and not state.ended)
        parts = [f"{many} {'job is' if many == 1 else 'jobs are'} {words}" for words, many in count.most_common()]
        if any(state.words and not (state.waits or state.ended) for state in states):
            parts.append("workers of jobs that run have not joined: " + NOT_JOINED)
        if self.refusal:
            parts.append(f"no further job is taken: {self.refusal}")
        return f"{self._queue.name} says: " + "; ".join(parts) if parts else ""

    def _say_once(self, text: str, key: str = "") -> None:
        """Note a text unless one with this key, by default the same text but for its numbers, was noted already."""
        known = key or re.sub(r"\d+", "", text)
        if known not in self._said:
            self._said.add(known)
            self._notes.put(text)


def in_its_words(problem: Exception) -> str:
    """What the program that submits jobs complained about; dask-jobqueue wraps that into lines of its own."""
    said = str(problem).partition("stderr:")[2] or str(problem)
    return " ".join(said.split())


def joining(watch: JobWatch) -> Any:
    """A plugin of Dask's scheduler that tells of every worker that joins."""
    from distributed import SchedulerPlugin

    class Joining(SchedulerPlugin):  # type: ignore[misc]
        def add_worker(self, scheduler: Any, worker: str) -> None:
            watch.joined(str(scheduler.workers[worker].name))

    return Joining()


def _replace(cluster: Any, job: Any) -> None:
    """Let Dask see that a job is not there: it submits another in its place at its next look."""
    from distributed import Status

    job.status = Status.closed
    if cluster.workers.get(job.name) is job:
        del cluster.workers[job.name]
