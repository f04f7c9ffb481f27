"""What a worker hands to the driver: a chunk in a staging folder, and a report that vouches for the chunk.

Only the driver, which owns the store, moves chunks into it and enters them into the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teachonce.core.locks import require_token
from teachonce.labels.staging import drop_staging
from teachonce.labels.store import LabelStore
from teachonce.watching.workers import WorkerMark


@dataclass(frozen=True)
class ChunkReport:
    """What a task tells the driver."""

    chunk: int
    staging: str = ""
    """The folder that holds the chunk; empty when all requested groups had been committed before."""
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


def deliver(store: LabelStore, report: ChunkReport, token: int) -> tuple[str, ...]:
    """Move a reported chunk into the store and commit it.

    Returns:
        The column groups that this report brought; none if another attempt had delivered the chunk.

    Raises:
        IncompleteError: this run no longer owns the store, or a file cannot be moved.
    """
    if not report.staging:
        return ()
    brought = []
    try:
        for group, digests in report.digests:
            if store.record(group, report.chunk) is not None:
                continue
            require_token(store.path, token)
            store.publish(group, report.chunk, Path(report.staging))
            require_token(store.path, token)
            store.commit(group, report.chunk, token, report.rows_ok, report.rows_failed, digests, report.phases)
            brought.append(group)
    finally:
        drop_staging(Path(report.staging))
    return tuple(brought)
