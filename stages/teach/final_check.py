"""The check at the end: every chunk is read back against its record, by the workers while they are there.

A worker only takes doubt away. What it does not find sound, and what no worker looks at, this process reads itself,
since it owns the store: a worker on another machine may see files of a network disk late, and its doubt ends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from teachonce.cluster import client as cluster_client
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter
from teachonce.errors import IncompleteError, IntegrityError, TeachOnceError
from teachonce.labels.store import LabelStore
from teachonce.teaching.worker import worker_store

FEW = 16  # so many chunks are read here sooner than tasks are handed out
SLICE = 4  # chunks of one task: a quarter of a second, which Dask's part does not count against
PATIENCE = 60.0  # seconds without an answer of any worker until this process does the rest


def check(
    client: Any,
    store: LabelStore,
    groups: tuple[str, ...],
    token: int,
    reporter: Reporter,
    *,
    with_workers: bool,
    heed: Callable[[], None] = lambda: None,
) -> None:
    """Read every chunk of these column groups back.

    Args:
        client: of the cluster, whose workers have taught this store.
        store: whole, as far as its ledger says.
        groups: column groups that were asked for.
        token: of the run.
        reporter: told about progress.
        with_workers: whether workers take part; otherwise `client` is not used.
        heed: called all the time, from any thread; what it raises ends the check.

    Raises:
        IncompleteError: a chunk is not committed.
        IntegrityError: a file is missing, damaged, swapped or stale; names it.
    """
    chunks = store.layout.chunks
    sound: set[int] = set()
    if with_workers and chunks > FEW:
        for proved in _by_workers(client, store, groups, token, reporter):
            heed()
            sound.update(proved)
            reporter.progress("check", len(sound), chunks, "chunks")
    rest = [chunk for chunk in range(chunks) if chunk not in sound]

    def read(chunk: int) -> None:
        heed()
        for group in groups:
            store.read_chunk(group, chunk)

    with ThreadPoolExecutor(default_threads(1)) as pool:  # decompression and digests leave Python's lock
        for number, _ in enumerate(pool.map(read, rest), start=len(sound) + 1):
            reporter.progress("check", number, chunks, "chunks")


class _NobodyAnswersError(Exception):
    """No worker has answered for a while."""


def _by_workers(
    client: Any, store: LabelStore, groups: tuple[str, ...], token: int, reporter: Reporter
) -> Iterator[tuple[int, ...]]:
    """Chunks that workers have found sound, as they answer; it ends early where they stay silent or fail."""
    slices = [range(first, min(first + SLICE, store.layout.chunks)) for first in range(0, store.layout.chunks, SLICE)]
    tasks = [(str(store.path), token, groups, tuple(chunks)) for chunks in slices]
    heard = time.monotonic()

    def require_answers() -> None:
        if time.monotonic() - heard > PATIENCE:
            raise _NobodyAnswersError

    name = f"check-{token:x}"
    try:
        for proved in cluster_client.run_tasks(client, sound_chunks, tasks, name, reporter, each_look=require_answers):
            heard = time.monotonic()
            yield proved
    except (_NobodyAnswersError, TeachOnceError):
        reporter.note("the workers have not checked all chunks; this process reads the rest")


def sound_chunks(store: str, token: int, groups: tuple[str, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the chunks that this worker reads back as their records say: a task."""
    opened = worker_store(Path(store), token)
    return tuple(chunk for chunk in chunks if all(_is_sound(opened, group, chunk) for group in groups))


def _is_sound(store: LabelStore, group: str, chunk: int) -> bool:
    try:
        store.read_chunk(group, chunk)
    except (IntegrityError, IncompleteError):
        return False
    return True
