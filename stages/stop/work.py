"""The work of `stop`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import time
from pathlib import Path

from teachonce.core.locks import HEARTBEAT_S, SILENT_BEATS, LockOwner
from teachonce.core.machine import lives
from teachonce.core.progress import Reporter
from teachonce.core.status import Worker
from teachonce.errors import DataError, IncompleteError, UsageError
from teachonce.keeping.owners import last_sign, read_owner
from teachonce.labels.status import StoreStatus, is_store, store_status
from teachonce.objects.remote import exists
from teachonce.phrases import option
from teachonce.stages.stop.request import StopRequest, StopResult
from teachonce.watching.stop import ask_to_stop, withdraw_stop

LOOK_EVERY_S = 0.5
SILENT_S = SILENT_BEATS * HEARTBEAT_S  # after which an owner that cannot be seen is given up


def stop(request: StopRequest, reporter: Reporter) -> StopResult:
    """Ask for it, and wait for the end if that is wanted. The stage's `stop` says what is raised."""
    began, store = time.monotonic(), request.labels
    if exists(store) and not is_store(store):
        raise DataError(f"{store} is no label store", hint="teachonce stop labels.zarr")
    owner = _living_owner(store)
    ask_to_stop(store, owner.token)
    if not _still_owns(store, owner):  # it ended while it was asked
        withdraw_stop(store)
        raise _nobody(store)
    process = Worker(host=owner.host, pid=owner.pid, alive=lives(owner))
    workers = _known_workers(store)
    if request.wait:
        _wait(store, owner, reporter)
    standing = store_status(store, time.time()) if request.wait and is_store(store) else None
    return StopResult(
        labels=str(store),
        process=process,
        workers=workers,
        ended=request.wait,
        chunks=standing.chunks if standing else None,
        chunks_committed=standing.chunks_committed if standing else None,
        seconds=time.monotonic() - began,
        said=_said(store, owner, workers, request.wait, standing),
    )


def _living_owner(store: Path) -> LockOwner:
    """Who writes the store, alive as far as can be seen from here.

    Raises:
        UsageError: nobody does.
    """
    owner = read_owner(store)
    if owner is None or lives(owner) is False:
        withdraw_stop(store)  # of somebody who asked too late
        raise _nobody(store, owner)
    return owner


def _nobody(store: Path, owner: LockOwner | None = None) -> UsageError:
    dead = "" if owner is None else f"; process {owner.pid} on {owner.host}, which did, has ended"
    return UsageError(f"nobody writes {store}: there is nothing to stop{dead}", hint=f"teachonce status {store}")


def _still_owns(store: Path, owner: LockOwner) -> bool:
    now = read_owner(store)
    return now is not None and now.token == owner.token


def _known_workers(store: Path) -> int | None:
    if not is_store(store):
        return None
    workers = store_status(store, time.time()).workers
    return sum(worker.state != "gone" for worker in workers) or None


def _wait(store: Path, owner: LockOwner, reporter: Reporter) -> None:
    """Wait until the owner is gone.

    Raises:
        IncompleteError: it gives no sign of life.
    """
    reporter.note(f"waiting for process {owner.pid} on {owner.host} to end")
    sign, seen = last_sign(store).time, time.monotonic()
    while _still_owns(store, owner) and (alive := lives(owner)) is not False:
        if (now := last_sign(store).time) != sign:  # a change is a sign, whatever the clocks of two machines say
            sign, seen = now, time.monotonic()
        silent = time.monotonic() - seen
        if alive is None and silent > SILENT_S:
            raise IncompleteError(
                f"process {owner.pid} on {owner.host} was asked to stop writing {store} and has given no sign for "
                f"{silent:.0f} s",
                hint="look whether that machine still runs; who writes the store next takes its lock over",
            )
        time.sleep(LOOK_EVERY_S)


def _said(store: Path, owner: LockOwner, workers: int | None, waited: bool, standing: StoreStatus | None) -> str:
    who = f"process {owner.pid} on {owner.host}"
    if not waited:
        of = "" if workers is None else f" of {workers} workers"
        return (
            f"{who} ends with exit 5 as soon as the chunks under way{of} are committed; its command typed again goes "
            f"on. `teachonce stop {store}` with " + option("wait") + " waits for that"
        )
    if standing is None or standing.chunks is None:
        return f"{who} has ended before it made the store"
    return (
        f"{who} has ended: {standing.chunks_committed} of {standing.chunks} chunks are committed; its command typed "
        "again goes on"
    )
