"""What a worker hands to the driver: a chunk in a staging folder, and a report that vouches for the chunk.

Only the driver, which owns the store, moves chunks into it and enters them into the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from teachonce.core.files import is_remote
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import StagedFile
from teachonce.keeping.owners import require_token
from teachonce.keeping.staging import drop_staging
from teachonce.labels.direct import enter
from teachonce.labels.ledger import to_row
from teachonce.labels.store import LabelStore
from teachonce.watching.workers import WorkerMark

THREADS = 16  # a delivery waits for some 23 fsyncs, one after the other; more threads hardly help a disk


@dataclass(frozen=True)
class ChunkReport:
    """What a task tells the driver."""

    chunk: int
    staging: str = ""
    """The folder that holds the chunk, or its name in a bucket; empty when all requested groups had been committed
    before."""
    digests: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    """Each column group in the folder, with the digests of its arrays."""
    rows_ok: int = 0
    rows_failed: int = 0
    faults: tuple[tuple[str, str], ...] = ()
    """Sample key and reason of each image that failed."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds in each of `ledger.PHASES`."""
    images: int = 0
    image_bytes: int = 0
    seconds: float = 0.0
    """Seconds from the start of the task to its end; other tasks of the worker share this time."""
    worker: WorkerMark | None = None
    """Who computed the chunk; None where nothing was computed."""
    staged: tuple[tuple[str, tuple[StagedFile, ...]], ...] = ()
    """Where the store lies in a bucket: what was left there of each column group."""


def deliver(store: LabelStore, report: ChunkReport, token: int) -> tuple[str, ...]:
    """Move a reported chunk into the store and commit it.

    Returns:
        The column groups that this report brought; none if another attempt had delivered the chunk.

    Raises:
        IncompleteError: this run no longer owns the store, or a file cannot be moved.
    """
    if not report.staging:
        return ()
    if is_remote(store.path):
        return _enter(store, report, token)
    try:
        new = {group: digests for group, digests in report.digests if store.record(group, report.chunk) is None}
        if new:
            require_token(store.path, token)
            store.publish(report.chunk, new, Path(report.staging))
        for group, digests in new.items():
            require_token(store.path, token)
            store.commit(group, report.chunk, token, report.rows_ok, report.rows_failed, digests, report.phases)
    finally:
        drop_staging(Path(report.staging))
    return tuple(new)


def _enter(store: LabelStore, report: ChunkReport, token: int) -> tuple[str, ...]:
    """Deliver a chunk that lies in the store's bucket; a claim decides, and no lock.

    Where this fails, what was staged stays: the next run finishes what was claimed, and removes the rest.
    """
    staged, brought = dict(report.staged), []
    for group, digests in report.digests:
        require_token(store.path, token)
        row = to_row(token, report.rows_ok, report.rows_failed, digests, report.phases)
        if enter(store, group, report.chunk, token, row, staged[group]):
            brought.append(group)
    if len(brought) < len(report.digests):
        BucketKeeper(store.path).discard(report.staging)
    return tuple(brought)


class Deliveries:
    """Deliveries under way, several at a time in threads: they wait for the disk most of the time, and not in turn.

    One thread uses an object of this class. On leaving its `with` block, whatever was handed over is delivered first;
    only where a delivery has failed are those dropped that had not begun.
    """

    def __init__(self, store: LabelStore, token: int, threads: int = THREADS) -> None:
        self._store, self._token, self._most = store, token, 2 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="delivery")
        self._running: dict[Future[tuple[str, ...]], ChunkReport] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: object) -> None:
        failed = any(one.done() and one.exception() is not None for one in self._running)
        self._pool.shutdown(wait=True, cancel_futures=failed)

    def add(self, report: ChunkReport) -> None:
        """Begin to deliver a report; waits while too many others are under way."""
        chunk_before = [one for one, other in self._running.items() if other.chunk == report.chunk]
        wait(chunk_before)  # of two attempts at a chunk, the second must find what the first has committed
        while sum(not one.done() for one in self._running) >= self._most:
            wait((one for one in self._running if not one.done()), return_when=FIRST_COMPLETED)
        self._running[self._pool.submit(deliver, self._store, report, self._token)] = report

    def ended(self, *, all_of_them: bool = False) -> Iterator[tuple[ChunkReport, tuple[str, ...]]]:
        """Take the reports that were delivered since the last call, each with the column groups that it brought.

        Args:
            all_of_them: wait until none is under way.

        Raises:
            IncompleteError, EnvironmentFault: as the first delivery that failed raised them.
        """
        if all_of_them:
            wait(self._running, return_when=FIRST_EXCEPTION)
        for one in [one for one in self._running if one.done()]:
            brought = one.result()
            yield self._running.pop(one), brought
