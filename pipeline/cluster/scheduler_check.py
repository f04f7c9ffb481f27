"""A check before a run on somebody else's scheduler: does it have workers, and do they have the same teachonce?"""

from __future__ import annotations

import time
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client

from teachonce import __version__
from teachonce.core.machine import package_versions
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault

ANSWER_SECONDS = 60  # a busy worker answers between two batches
WAIT_KEY = "teachonce.wait-for-workers"
WAIT = "5 minutes"


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
    _compare(_ask(client, reporter), reporter)


def own_versions() -> dict[str, str]:
    """Return the versions of teachonce and other packages in the calling process, by package."""
    return {"teachonce": __version__, **package_versions()}


def _ask(client: Client, reporter: Reporter) -> dict[str, Any]:
    try:
        answers: dict[str, Any] = client.sync(
            client._run, own_versions, on_error="return", callback_timeout=ANSWER_SECONDS
        )
    except TimeoutError:
        reporter.note(f"not every worker says its versions within {ANSWER_SECONDS} s; going on")
        return {}
    return answers


def _compare(answers: dict[str, Any], reporter: Reporter) -> None:
    here = own_versions()
    notes: dict[str, str] = {}
    for worker, answer in answers.items():
        if isinstance(answer, ImportError):
            raise EnvironmentFault(
                f"the worker at {worker} cannot import teachonce: {answer}",
                hint="install the same version of teachonce on the workers",
            )
        if not isinstance(answer, dict):
            notes[f"a worker does not say its versions: {answer!r}"] = worker
            continue
        if answer["teachonce"] != here["teachonce"]:
            raise EnvironmentFault(
                f"the worker at {worker} has teachonce {answer['teachonce']}; here it is {here['teachonce']}",
                hint="install the same version on both sides",
            )
        for name, version in here.items():
            if answer.get(name) != version:
                difference = f"{name} is {answer.get(name)} on workers and {version} here: last bits may differ"
                notes[difference] = worker
    for text, worker in notes.items():
        reporter.note(f"{text} (seen at {worker})")
