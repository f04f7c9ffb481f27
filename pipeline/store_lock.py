"""One writer a store: a lock file beside it, which also tells tasks whether their run still owns the store.

It does not protect readers; they need no lock, because the ledger says what exists.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from teachonce.errors import IncompleteError
from teachonce.progress import Reporter
from teachonce.remote import refuse_writes
from teachonce.store_sync import write_failed

HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class LockOwner:
    """Who holds a store."""

    host: str
    pid: int
    started: float
    """When the process began, in seconds since the machine did: a pid alone may have been given to another process,
    and the wall clock may jump."""
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
    owner = LockOwner(socket.gethostname(), os.getpid(), process_start(os.getpid()), token)
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
        raise IncompleteError(f"{path}: another process took the lock at the same instant",
                              hint="run the same command again") from None  # fmt: skip
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
    if owner is not None and not force and not _is_dead(owner):
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


def _is_dead(owner: LockOwner) -> bool:
    if owner.host != socket.gethostname():
        return False  # cannot be known from here
    try:
        process = psutil.Process(owner.pid)
        # A zombie has ended; in a container nobody may ever reap it.
        return bool(process.status() == psutil.STATUS_ZOMBIE or abs(process_start(owner.pid) - owner.started) > 2.0)
    except psutil.NoSuchProcess:
        return True


def process_start(pid: int) -> float:
    """When a process began, on a clock that nobody sets: seconds since boot where the system tells, else since 1970.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return float(psutil.Process(pid).create_time())
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with suppress(OSError):
            os.utime(path)
