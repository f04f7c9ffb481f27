"""What `relabel` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.core.devices import AUTO


@dataclass(frozen=True, kw_only=True)
class RelabelRequest:
    """What to make of which store; what is None stays as in the parent. See `teachonce relabel --help`."""

    parent: Path
    labels: Path
    vocabulary: str | None = None
    templates: tuple[str, ...] | None = None
    top_k: int | None = None
    temperatures: tuple[float, ...] | None = None
    classes: Path | None = None
    teacher: str | None = None
    root: Path | None = None
    threads: int | None = None
    device: str = AUTO
    """What is computed on, as `core.devices.pick_device` takes it."""
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class RelabelResult:
    """What the run did; `rows_ok + rows_failed` is every row of the store."""

    rows_ok: int
    rows_failed: int
    classes: int
    top_k: int
    temperatures: tuple[float, ...]
    templates: tuple[str, ...]
    chunks_written: int
    chunks_skipped: int
    seconds: float
    bytes_per_row: dict[str, float]
    parent: str
    labels: str
    store_id: str
