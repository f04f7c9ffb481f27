"""What is said of one worker: by its own tasks, by the scheduler, and by the board that puts both together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

WorkerState = Literal["preparing", "working", "gone"]


@dataclass(frozen=True, kw_only=True)
class WorkerMark:
    """Who computed a chunk: a task fills it in, and it travels with the report."""

    name: str
    """As the scheduler calls the worker."""
    host: str
    pid: int
    device: str
    """As torch names it, with the GPU's own name behind."""
    memory_bytes: int
    """Resident memory of the process when the chunk was done."""


@dataclass(frozen=True, kw_only=True)
class Presence:
    """A worker that the scheduler knows, whether or not it has done anything."""

    host: str
    memory_bytes: int | None
    beat: float
    """Changes with every sign of life that the scheduler gets; on a clock of its own."""


@dataclass(frozen=True, kw_only=True)
class WorkerPace:
    """Who works how fast, as `teach` and `status` show it."""

    name: str
    host: str
    pid: int | None
    """None, as `device`: it has delivered no chunk yet."""
    device: str | None
    state: WorkerState
    chunks: int
    rows: int
    rows_per_second: float | None
    """Of its last chunks; the first ones, for which models were loaded, count only where there are no others."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of the time of those chunks, by phase."""
    memory_bytes: int | None
    seconds_since_sign: float
    slow: bool
    """Less than half as fast as the median of all workers."""
