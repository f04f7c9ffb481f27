"""Where a label store stands while `teach`, `relabel` or `merge` writes it: what the ledger and the lock say.

This module takes no lock, writes nothing and reads no row; `verify` checks whether rows are sound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from teachonce.core.files import is_remote
from teachonce.core.locks import lock_path
from teachonce.core.status import State, Worker, ending, iso, state_of, worker_of
from teachonce.errors import IntegrityError
from teachonce.keeping.owners import last_sign
from teachonce.objects.remote import exists
from teachonce.watching.stop import stop_request
from teachonce.watching.watch import workers_of
from teachonce.watching.workers import WorkerPace

if TYPE_CHECKING:
    from teachonce.labels.ledger import Record
    from teachonce.labels.store import LabelStore

TRIES, PAUSE_S = 4, 0.3  # reading is tried again, since the header changes while a column group is added


@dataclass(frozen=True, kw_only=True)
class GroupStatus:
    """A column group: the labels, the teacher's embeddings, a student's features."""

    group: str
    chunks_committed: int
    unreadable: int
    """Ledger records that are damaged."""


@dataclass(frozen=True, kw_only=True)
class StoreStatus:
    """A label store. A chunk counts as committed when all its column groups are."""

    kind: Literal["labels"] = "labels"
    path: str
    made_by: str
    """The command that made the store, and goes on with it."""
    state: State
    process: Worker | None
    """Whoever holds the lock, alive or not; None: the store is free."""
    chunks: int | None
    """None, as all figures: there is only a lock so far."""
    chunks_committed: int
    rows: int | None
    rows_committed: int
    rows_failed: int
    groups: tuple[GroupStatus, ...]
    rows_per_second: float | None
    """Of the last run, by the times in the ledger."""
    runs: int
    """That committed something."""
    last_commit: str | None
    last_sign: str | None
    seconds_since_sign: float | None
    seconds_left: float | None
    estimated_end: str | None
    workers: tuple[WorkerPace, ...]
    """Of the run that goes on, or of the last one, if it did not finish the store; they may be seconds old."""
    seconds_since_stop: float | None
    """Since somebody asked the run to stop; None where nobody did."""


@dataclass(frozen=True)
class _Commits:
    """What a ledger tells, by chunk."""

    whole: dict[int, list[Record]]
    """Chunks that all groups have; their records."""
    every: list[Record]
    groups: tuple[GroupStatus, ...]
    failed: int


def is_store(path: Path) -> bool:
    """Whether this is a label store, even if nothing but its lock is there yet."""
    if is_remote(path):
        return exists(path / "zarr.json") or last_sign(path).owner is not None
    return (path / "zarr.json").is_file() or (not path.exists() and lock_path(path).is_file())


def store_status(path: Path, now: float) -> StoreStatus:
    """Look at a store.

    Args:
        path: for which `is_store` holds.
        now: seconds since 1970.

    Raises:
        DataError: it is a Zarr group of something else.
        IntegrityError: a metadata file is damaged, or a newer version wrote the store.
    """
    lock = last_sign(path)
    worker, token, sign = worker_of(lock.owner), None if lock.owner is None else lock.owner.token, lock.time
    if not exists(path / "zarr.json" if is_remote(path) else path):
        return _only_a_lock(path, worker, token, sign, now)
    store = _opened(path)
    commits = _commits(store)
    rows = sum(stop - start for start, stop in map(store.layout.bounds, commits.whole))
    rate, last, gap = _pace(store, commits)
    sign = max((sign or 0.0, last or 0.0)) or None
    silent = max(0.0, now - sign) if sign is not None else None
    done = len(commits.whole) == store.layout.chunks and worker is None
    state = state_of(worker, done, bool(commits.every), silent or 0.0, gap)
    at_work = None if worker is None or worker.alive is False else token
    end = ending(store.layout.rows - rows, rate, last or now, now, state)
    return StoreStatus(
        path=str(path),
        made_by=store.maker,
        state=state,
        process=worker,
        chunks=store.layout.chunks,
        chunks_committed=len(commits.whole),
        rows=store.layout.rows,
        rows_committed=rows,
        rows_failed=commits.failed,
        groups=commits.groups,
        rows_per_second=rate,
        runs=len({record.token for record in commits.every}),
        last_commit=iso(last) if last is not None else None,
        last_sign=iso(sign) if sign is not None else None,
        seconds_since_sign=round(silent, 1) if silent is not None else None,
        seconds_left=end.seconds_left,
        estimated_end=end.estimated_end,
        workers=() if state == "finished" else workers_of(path, at_work, now),
        seconds_since_stop=_since_stop(path, token, now),
    )


def _since_stop(path: Path, token: int | None, now: float) -> float | None:
    request = None if token is None else stop_request(path, token)
    return None if request is None else round(max(0.0, now - request.asked_at), 1)


def _only_a_lock(path: Path, worker: Worker | None, token: int | None, sign: float | None, now: float) -> StoreStatus:
    silent = max(0.0, now - sign) if sign is not None else 0.0
    return StoreStatus(
        path=str(path),
        made_by="teachonce teach",
        state=state_of(worker, False, False, silent, 0.0),
        process=worker,
        chunks=None,
        chunks_committed=0,
        rows=None,
        rows_committed=0,
        rows_failed=0,
        groups=(),
        rows_per_second=None,
        runs=0,
        last_commit=None,
        last_sign=iso(sign) if sign is not None else None,
        seconds_since_sign=round(silent, 1),
        seconds_left=None,
        estimated_end=None,
        workers=(),
        seconds_since_stop=_since_stop(path, token, now),
    )


def _opened(path: Path) -> LabelStore:
    from teachonce.labels.store import LabelStore

    for _ in range(TRIES - 1):
        try:
            return LabelStore.open(path)
        except IntegrityError:
            time.sleep(PAUSE_S)
    return LabelStore.open(path)


def _commits(store: LabelStore) -> _Commits:
    from teachonce.labels.format import LABELS

    records = {name: _records(store, name) for name in store.groups}
    groups = tuple(
        GroupStatus(group=name, chunks_committed=sum(r is not None for r in chunk_records), unreadable=bad)
        for name, (chunk_records, bad) in records.items()
    )
    columns = [chunk_records for chunk_records, _ in records.values()]
    whole = {
        chunk: [record for record in at if record is not None]
        for chunk, at in enumerate(zip(*columns, strict=True))
        if None not in at
    }
    every = [record for column in columns for record in column if record is not None]
    failed = sum(record.rows_failed for record in records[LABELS][0] if record is not None)
    return _Commits(whole, every, groups, failed)


def _records(store: LabelStore, group: str) -> tuple[Sequence[Record | None], int]:
    """The record of each chunk, None where no record can be read; and the number of unreadable records."""
    try:
        return store.records(group), 0
    except IntegrityError:
        pass
    records: list[Record | None] = []
    bad = 0
    for chunk in range(store.layout.chunks):
        try:
            records.append(store.record(group, chunk))
        except IntegrityError:
            records.append(None)
            bad += 1
    return records, bad


def _pace(store: LabelStore, commits: _Commits) -> tuple[float | None, float | None, float]:
    """Rows a second of the last run, its last commit in seconds since 1970, and the usual gap between two commits."""
    if not commits.every:
        return None, None, 0.0
    newest_record = max(commits.every, key=lambda record: record.time_us)
    last = newest_record.time_us / 1e6
    mine = {}
    for chunk, records in commits.whole.items():  # its last record made the chunk whole
        final = max(records, key=lambda record: record.time_us)
        if final.token == newest_record.token:
            mine[chunk] = final
    if not mine:
        return None, last, 0.0
    first = min(mine.values(), key=lambda record: record.time_us)
    seconds = last - first.time_us / 1e6 + first.seconds
    rows = sum(stop - start for start, stop in map(store.layout.bounds, mine))
    return (rows / seconds if seconds > 0 else None), last, seconds / len(mine)
