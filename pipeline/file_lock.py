"""Locks on files that the system frees when their process ends, however it ends (flock).

It keeps no record of who holds one, and removes no file.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

SHARED = fcntl.LOCK_SH
ALONE = fcntl.LOCK_EX
ALONE_OR_NOT = fcntl.LOCK_EX | fcntl.LOCK_NB  # does not wait


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
