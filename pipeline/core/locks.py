"""Locks, each held while a `with` block runs.

`exclusive` and `shared` are the system's own locks on a file: they end with the process that holds them, however it
ends, and hold on one machine. Working sets, runs and cells of grids are guarded so.

`owned` makes a process the one writer of a store or a grid, on all machines that see its folder: a lock file beside it
names the owner, whose token tells tasks whether their run still owns the store. Such a file outlives a process that is
killed; who comes next in the same place sees that the owner is dead, and takes over. From another machine or another
container the owner cannot be seen: there the lock file's own signs of life count, which a living owner gives every few
seconds. Readers of a store need no lock, because the ledger says what exists.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from teachonce.core.documents import read_object
from teachonce.core.files import neighbour, refuse_writes, write_failed
from teachonce.core.machine import ProcessMark, lives, this_process
from teachonce.core.progress import Reporter
from teachonce.core.strict import decode_known
from teachonce.errors import IncompleteError
from teachonce.phrases import phrase

HEARTBEAT_S = 10.0
SILENT_BEATS = 6  # without a sign before an owner that cannot be seen is looked at
WATCHED_BEATS = 2.5  # ... and so many more while one looks: clocks of two machines differ, and jump
_DRAFT = re.compile(r"\.[0-9a-f]{1,16}")


@dataclass(frozen=True)
class LockOwner(ProcessMark):
    """Who holds a store."""

    token: int


def lock_path(store: Path) -> Path:
    """The lock file of a store: beside it, so that nothing foreign lies inside the Zarr hierarchy."""
    return neighbour(store, ".lock")


def read_owner(store: Path) -> LockOwner | None:
    """The present owner; None when the store is free or the file cannot be read."""
    try:
        return decode_known(LockOwner, read_object(lock_path(store)) or {}, "lock", ValueError)
    except ValueError:
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
def owned(store: Path, reporter: Reporter, force: bool = False) -> Iterator[int]:
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
    beat = threading.Thread(target=_beat, args=(store, token, stop), daemon=True, name="store-lock")
    beat.start()
    try:
        yield token
    finally:
        stop.set()
        beat.join()
        with exclusive(path.parent):
            now = read_owner(store)
            if now is not None and now.token == token:
                path.unlink(missing_ok=True)


def _take(store: Path, path: Path, owner: LockOwner, reporter: Reporter, force: bool) -> None:
    silent = None if force else _silent_owner(store, path)
    draft = path.with_name(f"{path.name}.{owner.token:x}")
    try:
        with exclusive(path.parent):  # looking, clearing away and taking are one step
            _remove_drafts(path)
            if path.exists():
                _remove_dead(store, path, reporter, force, silent)
            draft.write_text(json.dumps(asdict(owner)))
            os.link(draft, path)  # whole at once, and fails when the lock exists
    except (FileExistsError, FileNotFoundError):  # the latter: it removed this one's draft, on a disk without locks
        raise IncompleteError(
            f"{path}: another process took the lock at the same instant", hint="run the same command again"
        ) from None
    except OSError as problem:
        raise write_failed(path, problem) from problem
    finally:
        draft.unlink(missing_ok=True)


def _remove_drafts(path: Path) -> None:
    """Remove lock files that a killed process had not put in place yet: who makes one holds the folder meanwhile."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*"):
        with suppress(OSError):
            if _DRAFT.fullmatch(left.name[len(path.name) :]):
                left.unlink()


def _silent_owner(store: Path, path: Path) -> LockOwner | None:
    """The owner that cannot be seen from here and gives no sign while this process looks; None for any other."""
    owner = read_owner(store)
    if owner is None or lives(owner) is not None or _age(path) < SILENT_BEATS * HEARTBEAT_S:
        return None
    before, end = _sign(path), time.monotonic() + WATCHED_BEATS * HEARTBEAT_S
    while time.monotonic() < end:
        time.sleep(min(1.0, HEARTBEAT_S / 4))
        if _sign(path) != before:
            return None
    return owner


def _sign(path: Path) -> int:
    """When the file was last touched; on a network disk, opening it asks the server."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _age(path: Path) -> float:
    """Seconds since the last sign of life."""
    with suppress(OSError):  # its holder may free it at this moment
        return max(0.0, time.time() - path.stat().st_mtime)
    return 0.0


def _remove_dead(store: Path, path: Path, reporter: Reporter, force: bool, silent: LockOwner | None) -> None:
    owner = read_owner(store)
    seen = None if owner is None else lives(owner)
    dead = force or owner is None or seen is False or owner == silent
    if owner is not None and not dead:
        by_itself = "" if seen else f", which happens by itself after {SILENT_BEATS * HEARTBEAT_S:.0f} s without a sign"
        raise IncompleteError(
            f"{store} is being written by process {owner.pid} on {owner.host} (last sign {_age(path):.0f} s ago)",
            hint=phrase("wait for it; if that process is dead for certain, run the same command with {force_unlock}")
            + by_itself,
        )
    path.unlink(missing_ok=True)
    if owner is not None:
        reporter.note(f"reclaimed the lock that a dead process ({owner.pid}) left on {store}")


def _beat(store: Path, token: int, stop: threading.Event) -> None:
    path = lock_path(store)
    while not stop.wait(HEARTBEAT_S):
        owner = read_owner(store)
        if owner is not None and owner.token == token:  # another's lock shows the life of its own owner
            with suppress(OSError):
                os.utime(path)


@contextmanager
def exclusive(path: Path, *, wait: bool = True, create: bool = False) -> Iterator[int | None]:
    """Hold a file or a folder alone while the block runs.

    Whoever holds a file so may remove it: who waits for it, or opened it before, gets no lock on what is gone. On a
    file system without locks everybody gets one.

    Args:
        path: the file or folder.
        wait: until nobody else holds it; without, give up at once.
        create: make the file where it is not there.

    Yields:
        A descriptor of the file; None when it is not there, or held by another that was not waited for.

    Raises:
        OSError: it cannot be opened.
    """
    yield from _held(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, create)


@contextmanager
def shared(path: Path) -> Iterator[int | None]:
    """Hold a file together with others while the block runs, and wait until nobody holds it alone; see `exclusive`."""
    yield from _held(path, fcntl.LOCK_SH, create=False)


def _held(path: Path, how: int, create: bool) -> Iterator[int | None]:
    handle = _locked(path, how, create)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)  # this frees the lock, too


def _locked(path: Path, how: int, create: bool) -> int | None:
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
    except OSError:  # on a file system without locks everybody gets one
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
