"""What workers that somebody else started are asked before they are trusted: their versions and their memory limit.

`acquainted` asks a worker once. The run is ended at once by a worker that lacks teachonce or has another version of it,
also by one that joins in the middle: its tasks would fail, and those of other workers with it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import dask
from dask.utils import parse_timedelta
from distributed import Client

from teachonce import __version__
from teachonce.cluster.carrying import carried
from teachonce.cluster.worker_memory import memory_limit
from teachonce.core.machine import package_versions
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault

ANSWER_SECONDS = 60  # a busy worker answers between two batches
WAIT_KEY = "teachonce.wait-for-workers"
WAIT = "5 minutes"
TERMINATE_KEY = "distributed.worker.memory.terminate"
PAUSE_KEY = "distributed.worker.memory.pause"
OPTION = "--"  # begins the options of Dask's commands
MEMORY_HINT = (
    f"give the workers more memory, or start them without Dask's limit (`dask worker {OPTION}memory-limit 0`); smaller "
    "batch_size and class_tile take less"
)
SPREAD = (0.8, 1.3)  # what a worker will take, as a share of an estimate; `plan` has the same
PYTHONS = (ImportError, AttributeError, TypeError)
"""What Python raises of a function that a worker does not have, or has in another version."""


@dataclass(frozen=True)
class WorkerFacts:
    """What is known of a worker."""

    address: str
    name: str
    host: str = ""
    memory_limit: int = 0
    """Bytes that it may use; 0 where it did not say."""
    limited_by: str = ""
    """Who says so."""
    endures: float = 1.0
    """The share of the limit that it can use: Dask ends a worker, or gives it no more tasks, before all is used."""

    def __str__(self) -> str:
        at = f"{self.host}, {self.address}" if self.host else self.address
        return f"the worker at {self.address}" if self.name in ("", self.address) else f"the worker {self.name} ({at})"


class Acquaintances:
    """The workers of a client that have been asked, and what was said about them."""

    def __init__(self) -> None:
        self.facts: dict[str, WorkerFacts] = {}
        self.said: set[str] = set()
        self.memory = 0
        """Bytes that a worker is expected to take; 0 as long as that is not known."""


_KNOWN: WeakKeyDictionary[Client, Acquaintances] = WeakKeyDictionary()


def acquaintances(client: Client) -> Acquaintances:
    """The workers that this client's driver has asked so far."""
    return _KNOWN.setdefault(client, Acquaintances())


def require_same_version(client: Client, address: str, reporter: Reporter) -> None:
    """Wait for a first worker, then compare the version of teachonce on each.

    A task does the waiting, so that a cluster which grows with its work starts a worker.

    Raises:
        EnvironmentFault: no worker joins, or a worker lacks teachonce or has another version.
    """
    limit = parse_timedelta(dask.config.get(WAIT_KEY, WAIT))
    probe = client.submit(int, pure=False)  # the task needs no package, so any worker that joins can run it
    if not client.nthreads():
        reporter.note(f"waiting up to {limit:.0f} s for a worker to join {address}")
    until = time.monotonic() + limit
    while not client.nthreads():
        if time.monotonic() > until:
            raise EnvironmentFault(
                f"no worker has joined the scheduler at {address} within {limit:.0f} s",
                hint=f"start one: `dask worker {address}`; DASK_TEACHONCE__WAIT_FOR_WORKERS='1 hour' waits longer",
            )
        time.sleep(0.2)
    del probe
    require_fit_workers(client, reporter)


def require_fit_workers(client: Client, reporter: Reporter) -> None:
    """Ask all workers that have not been asked yet, and wait for their answers.

    Raises:
        EnvironmentFault: a worker lacks teachonce, or has another version of it.
    """
    new = [address for address in client.nthreads() if address not in acquaintances(client).facts]
    if new:
        judge(client, client.sync(ask, client, new), reporter)


async def ask(client: Client, addresses: list[str]) -> dict[str, tuple[WorkerFacts, Any]]:
    """What the scheduler knows of these workers, and what each of them answers: a table, or an exception.

    A worker that does not answer in time is answered for by a TimeoutError.
    """
    there = (await client.scheduler.identity())["workers"]
    question = client._run(*carried(own_facts), workers=addresses, on_error="return")
    try:
        answers: Mapping[str, Any] = await asyncio.wait_for(question, ANSWER_SECONDS)
    except TimeoutError as problem:
        answers = dict.fromkeys(addresses, problem)
    return {address: (_facts(address, there.get(address, {}), answer), answer) for address, answer in answers.items()}


def _facts(address: str, worker: Mapping[str, Any], answer: Any) -> WorkerFacts:
    said = answer if isinstance(answer, Mapping) else {}
    limits = [(*said["memory"], 1.0)] if "memory" in said else []
    by_dask, shares = int(worker.get("memory_limit") or 0), [share for share in said.get("shares", ()) if share]
    if by_dask and shares:
        limits.append((by_dask, "Dask's memory limit", min(shares)))
    limit, by, endures = min(limits, key=lambda limit: limit[0] * limit[2], default=(0, "", 1.0))
    return WorkerFacts(address, str(worker.get("name", "")), said.get("host", ""), limit, by, endures)


def own_versions() -> dict[str, str]:
    """Return the versions of teachonce and other packages in the calling process, by package."""
    return {"teachonce": __version__, **package_versions()}


def own_facts() -> dict[str, Any]:
    """What a worker answers: versions, host, the memory that it may use, and the shares of it at which Dask acts."""
    return {
        "versions": own_versions(),
        "host": socket.gethostname(),
        "memory": memory_limit(),
        "shares": (dask.config.get(PAUSE_KEY), dask.config.get(TERMINATE_KEY)),
    }


def expect_memory(client: Client, memory: int, reporter: Reporter) -> None:
    """Ask all workers how much memory they may use, also those that join later, and refuse those that have too little.

    Args:
        client: of the cluster.
        memory: bytes that a worker is estimated to take.
        reporter: is told of workers that may have too little.

    Raises:
        EnvironmentFault: a worker may use less than it will take, or is not fit for another reason.
    """
    known = acquaintances(client)
    known.memory = memory
    for worker in known.facts.values():
        _require_memory(worker, memory, reporter)
    require_fit_workers(client, reporter)


def gigabytes(size: float) -> str:
    """A size in words, of three digits."""
    return f"{size / 1e9:.3g} GB"


def _require_memory(worker: WorkerFacts, memory: int, reporter: Reporter) -> None:
    room = worker.memory_limit * worker.endures
    if not room or not memory or room > SPREAD[1] * memory:
        return
    share = f", and Dask lets it use {worker.endures:.0%} of that" if worker.endures < 1 else ""
    text = (
        f"{worker} may use {gigabytes(worker.memory_limit)} ({worker.limited_by}){share}; it will take about "
        f"{gigabytes(memory)}"
    )
    if room < SPREAD[0] * memory:
        raise EnvironmentFault(text, hint=MEMORY_HINT)
    reporter.note(text + ", which may not suffice")


def judge(client: Client, answers: Mapping[str, tuple[WorkerFacts, Any]], reporter: Reporter) -> None:
    """Remember the workers that can be trusted, and say what differs on them.

    Raises:
        EnvironmentFault: a worker lacks teachonce or memory, or has another version of teachonce.
    """
    known, here = acquaintances(client), own_versions()
    notes: dict[str, WorkerFacts] = {}
    for address, (worker, answer) in answers.items():
        if isinstance(answer, OSError) and not isinstance(answer, TimeoutError):
            continue  # it has left again; a worker that comes back is asked again
        known.facts[address] = worker
        _require_memory(worker, known.memory, reporter)
        if isinstance(answer, PYTHONS):
            raise _unfit(worker, answer)
        if not isinstance(answer, dict):
            notes[f"a worker does not say its versions: {answer!r}"] = worker
            continue
        there = answer["versions"]
        if there["teachonce"] != here["teachonce"]:
            raise EnvironmentFault(
                f"{worker} has teachonce {there['teachonce']}; here it is {here['teachonce']}",
                hint="install the same version on both sides",
            )
        for name, version in here.items():
            if there.get(name) != version:
                notes[f"{name} is {there.get(name)} on workers and {version} here: last bits may differ"] = worker
    for text, worker in notes.items():
        if text not in known.said:
            known.said.add(text)
            reporter.note(f"{text} (seen at {worker.address})")


def _unfit(worker: WorkerFacts, problem: Exception) -> EnvironmentFault:
    """The error of a worker that cannot even say its versions."""
    lacking = isinstance(problem, ImportError) and problem.name == "teachonce"
    what = "cannot import teachonce" if lacking else "has another version of teachonce, or not all of it"
    return EnvironmentFault(
        f"{worker} {what}: {problem}",
        hint=f"install teachonce {__version__} in the environment of that worker, or end the worker",
    )
