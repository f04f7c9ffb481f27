"""The proof that a server keeps conditions of writes, by races: what its version says, or its vendor, is no proof."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from teachonce.errors import EnvironmentFault
from teachonce.keeping.claims import PROBE, staging_key
from teachonce.objects.seam import Objects, Version

WRITERS = 8
_PROVED: set[str] = set()  # places that this process has proved: once a run is enough


def require_conditions(objects: Objects, store: Path) -> None:
    """Refuse a server on which two writers could both believe that they were first.

    Args:
        objects: of the folder that the store lies in.
        store: where a label store is to be written.

    Raises:
        EnvironmentFault: several of the writers of one race won, or none; or nothing can be written there.
    """
    if objects.place in _PROVED:
        return
    key = staging_key(store.name, PROBE + secrets.token_hex(8))
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            first = _race(pool, lambda mark: objects.put_new(key, mark))
            kept = len(first) == 1 and objects.put_new(key, b"late") is None
            if kept:
                second = _race(pool, lambda mark: objects.put_if(key, mark, first[0]))
                kept = len(second) == 1 and objects.put_if(key, b"late", first[0]) is None
    finally:
        objects.delete(key)
    if not kept:
        raise EnvironmentFault(
            f"{store}: the server does not keep the conditions If-None-Match and If-Match of writes: two runs could "
            "overwrite each other's rows there",
            hint=f"write the store to a local or shared disk, then teachonce push {store.name} {store}",
        )
    _PROVED.add(objects.place)


def _race(pool: ThreadPoolExecutor, write: Callable[[bytes], Version | None]) -> list[Version]:
    """The versions that the winners of a race of writers with different contents were given."""
    marks = [f"writer {number} {secrets.token_hex(8)}".encode() for number in range(WRITERS)]
    return [version for version in pool.map(write, marks) if version is not None]
