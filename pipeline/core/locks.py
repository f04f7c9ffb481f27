"""One writer a store: a lock file beside it, which also tells tasks whether their run still owns the store.

It does not protect readers; they need no lock, because the ledger says what exists.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from teachonce.core.files import write_failed
from teachonce.core.machine import ProcessMark, lives, this_process
from teachonce.core.progress import Reporter
from teachonce.core.remote import refuse_writes
from teachonce.errors import IncompleteError

SHARED = fcntl.LOCK_SH
ALONE = fcntl.LOCK_EX
ALONE_OR_NOT = fcntl.LOCK_EX | fcntl.LOCK_NB  # does not wait

HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class LockOwner(ProcessMark):
    """Who holds a store."""

    token: int


def lock_path(store: Path) -> Path:
    """The lock file of a store: beside it, so that nothing foreign lies inside the Zarr hierarchy."""
    return store.with_name(store.name + ".lock")


def read_owner(store: Path) -> LockOwner | None:
    """The present owner; None when the store is free or the file cannot be read."""
    try:
        return LockOwner(**json.loads(lock_path(store).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def require_token(store: Path, token: int) -> None:
    """Raise unless the run with this token still owns the store.

    Raises:
        IncompleteError: another run took over, or the run has ended: this task is a leftover and must not write.
    """
    owner = read_owner(store)
    if owner is None or owner.token != token:
        raise IncompleteError(f"{store}: this run no longer owns the store; its late chunk is dropped")


@contextmanager
def hold(store: Path, reporter: Reporter, force: bool = False) -> Iterator[int]:
    """Own the store while the block runs; yields the run token.

    Raises:
        IncompleteError: a living process owns it; says which.
        UsageError: the store is a URL.
    """
    refuse_writes(store)
    token = secrets.randbits(63)
    path = lock_path(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = LockOwner(**asdict(this_process()), token=token)
    _take(store, path, owner, reporter, force)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True, name="store-lock")
    beat.start()
    try:
        yield token
    finally:
        stop.set()
        beat.join()
        with _alone(path.parent):
            now = read_owner(store)
            if now is not None and now.token == token:
                path.unlink(missing_ok=True)


def _take(store: Path, path: Path, owner: LockOwner, reporter: Reporter, force: bool) -> None:
    draft = path.with_name(f"{path.name}.{owner.token:x}")
    try:
        draft.write_text(json.dumps(asdict(owner)))
        with _alone(path.parent):  # looking, clearing away and taking are one step
            if path.exists():
                _remove_dead(store, path, reporter, force)
            os.link(draft, path)  # whole at once, and fails when the lock exists
    except FileExistsError:
        raise IncompleteError(
            f"{path}: another process took the lock at the same instant", hint="run the same command again"
        ) from None
    except OSError as problem:
        raise write_failed(path, problem) from problem
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; file systems without flock are left with the atomic link alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_dead(store: Path, path: Path, reporter: Reporter, force: bool) -> None:
    owner = read_owner(store)
    if owner is not None and not force and lives(owner) is not False:
        age = 0.0
        with suppress(OSError):  # it may be freed right now
            age = max(0.0, time.time() - path.stat().st_mtime)
        raise IncompleteError(
            f"{store} is being written by process {owner.pid} on {owner.host} (last sign {age:.0f} s ago)",
            hint="wait for it; if that process is dead for certain, run the same command with --force-unlock",
        )
    path.unlink(missing_ok=True)
    if owner is not None:
        reporter.note(f"reclaimed the lock that a dead process ({owner.pid}) left on {store}")


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)


def locked(path: Path, how: int, create: bool = False) -> int | None:
    """A descriptor of the file with a lock on it; closing it frees the lock.

    Whoever holds the file exclusively may remove it: who waits for it, or opened it before, gets no lock on what is
    gone. On a file system without locks everybody gets one.

    Args:
        path: the file.
        how: SHARED, ALONE or ALONE_OR_NOT.
        create: make the file where it is not there.

    Returns:
        None when the file is not there, or held by another (ALONE_OR_NOT).

    Raises:
        OSError: it cannot be opened.
    """
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            if create:
                raise
            return None
        try:
            free = _flock(handle, how)
            # While this process waited the file may have been thrown away: then its lock protects nothing.
            there = free and _is_at(handle, path)
        except BaseException:
            os.close(handle)
            raise
        if there:
            return handle
        os.close(handle)
        if not free:
            return None


def _flock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: as if alone
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
