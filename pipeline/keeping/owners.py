"""Who writes a label store, wherever the store lies: the lock file beside a folder, or a lock object in a bucket.

The lock object is a courtesy that keeps two drivers from doing the same work: what a late or second driver may not
spoil is kept safe by `claims`. Its owner writes the object anew every few seconds, on the condition that it is still
the owner's. Who comes next takes over, on the same condition, from an owner that is dead or gives no sign.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from teachonce.core import locks
from teachonce.core.documents import json_in
from teachonce.core.files import is_remote
from teachonce.core.locks import LockOwner
from teachonce.core.machine import lives, this_process
from teachonce.core.progress import Reporter
from teachonce.core.strict import decode_known
from teachonce.errors import IncompleteError, TeachOnceError
from teachonce.keeping.probe import require_conditions
from teachonce.objects.places import open_objects
from teachonce.objects.seam import Objects, Stored, Version
from teachonce.phrases import phrase

ENDING = ".lock"
RELEASE_S = 20.0  # the most that the end of a command waits for a server that is away


@dataclass(frozen=True)
class Sign:
    """Who owns a store, and when the owner last gave a sign of life, in seconds since 1970 by the owner's clock."""

    owner: LockOwner | None
    time: float | None


def read_owner(store: Path) -> LockOwner | None:
    """The present owner; None when the store is free or its lock cannot be read."""
    return last_sign(store).owner if is_remote(store) else locks.read_owner(store)


def last_sign(store: Path) -> Sign:
    """What the lock of a store says."""
    if not is_remote(store):
        path = locks.lock_path(store)
        with suppress(OSError):  # it may be freed at any moment
            return Sign(locks.read_owner(store), path.stat().st_mtime)
        return Sign(None, None)
    stored = open_objects(store.parent).get(store.name + ENDING)
    return Sign(None, None) if stored is None else _sign(stored)


def require_token(store: Path, token: int) -> None:
    """Raise unless the run with this token still owns the store.

    Raises:
        IncompleteError: another run took over, or the run has ended: this task is a leftover and must not write.
    """
    if not is_remote(store):
        locks.require_token(store, token)
        return
    owner = read_owner(store)
    if owner is None or owner.token != token:
        raise IncompleteError(f"{store}: this run no longer owns the store; its late chunk is dropped")


@contextmanager
def owned(store: Path, reporter: Reporter, force: bool = False) -> Iterator[int]:
    """Own the store while the block runs; yields the run token.

    Raises:
        IncompleteError: a living process owns it; says which.
        EnvironmentFault: the store lies on a server that does not keep conditions of writes, or cannot be written.
    """
    if not is_remote(store):
        with locks.owned(store, reporter, force) as token:
            yield token
        return
    objects = open_objects(store.parent)
    require_conditions(objects, store)
    owner = LockOwner(**asdict(this_process()), token=secrets.randbits(63))
    beats = _Beats(objects, store, owner, _take(objects, store, owner, reporter, force))
    beats.start()
    try:
        yield owner.token
    finally:
        beats.end()


def _document(owner: LockOwner, beat: int) -> bytes:
    return json.dumps({**asdict(owner), "beat": beat, "time": time.time()}).encode()


def _sign(stored: Stored) -> Sign:
    try:
        document = json_in(stored.data)
        owner = decode_known(LockOwner, document, "lock", ValueError)
        return Sign(owner, float(document["time"]))
    except (ValueError, TypeError, KeyError):
        return Sign(None, None)


def _take(objects: Objects, store: Path, owner: LockOwner, reporter: Reporter, force: bool) -> Version:
    """Make the lock object say that `owner` owns the store.

    Raises:
        IncompleteError: somebody else does, or was quicker.
    """
    key, document = store.name + ENDING, _document(owner, 0)
    stored = objects.get(key)
    if stored is None:
        taken = objects.put_new(key, document)
    else:
        former = _sign(stored).owner
        _require_dead(objects, store, stored, force)
        taken = objects.put_if(key, document, stored.version)
        if taken is not None and former is not None:
            reporter.note(f"reclaimed the lock that a dead process ({former.pid}) left on {store}")
    if taken is None:
        raise IncompleteError(
            f"{store}{ENDING}: another process took the lock at the same instant", hint="run the same command again"
        )
    return taken


def _require_dead(objects: Objects, store: Path, stored: Stored, force: bool) -> None:
    sign = _sign(stored)
    owner = sign.owner
    if force or owner is None:
        return
    seen = lives(owner)
    age = max(0.0, time.time() - (sign.time or 0.0))
    if seen is False or (seen is None and _is_silent(objects, store, stored, age)):
        return
    silence = locks.SILENT_BEATS * locks.HEARTBEAT_S
    by_itself = "" if seen else f", which happens by itself after {silence:.0f} s without a sign"
    raise IncompleteError(
        f"{store} is being written by process {owner.pid} on {owner.host} (last sign {age:.0f} s ago)",
        hint=phrase("wait for it; if that process is dead for certain, run the same command with {force_unlock}")
        + by_itself,
    )


def _is_silent(objects: Objects, store: Path, stored: Stored, age: float) -> bool:
    """Whether an owner that cannot be seen from here gives no sign while this process looks, for a while."""
    if age < locks.SILENT_BEATS * locks.HEARTBEAT_S:
        return False
    end = time.monotonic() + locks.WATCHED_BEATS * locks.HEARTBEAT_S
    while time.monotonic() < end:
        time.sleep(min(1.0, locks.HEARTBEAT_S / 4))
        now = objects.get(store.name + ENDING)
        if now is None or now.version != stored.version:
            return False
    return True


class _Beats:
    """The signs of life of an owner, in a thread; an owner that was robbed of its lock gives none any more."""

    def __init__(self, objects: Objects, store: Path, owner: LockOwner, version: Version) -> None:
        self._objects, self._key, self._owner, self._version = objects, store.name + ENDING, owner, version
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="store-lock")

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Give the lock back, unless the server is away for long: then the lock goes by its silence."""
        self._over.set()
        release = threading.Thread(target=self._release, daemon=True, name="store-unlock")
        release.start()
        release.join(RELEASE_S)

    def _beat(self) -> None:
        number = 0
        while not self._over.wait(locks.HEARTBEAT_S):
            number += 1
            with suppress(TeachOnceError):  # the server is away; the work itself says so
                version = self._objects.put_if(self._key, _document(self._owner, number), self._version)
                if version is None:  # robbed, unless only the answer to an earlier sign was lost
                    stored = self._objects.get(self._key)
                    if stored is None or _sign(stored).owner != self._owner:
                        return
                    version = stored.version
                self._version = version

    def _release(self) -> None:
        self._thread.join()
        with suppress(TeachOnceError):
            stored = self._objects.get(self._key)
            if stored is not None and _sign(stored).owner == self._owner:
                self._objects.delete(self._key)
