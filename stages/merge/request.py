"""What `merge` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.core.devices import AUTO
from teachonce.softening.rules import RowRule


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """Which stores to merge, and how; see `teachonce merge --help`."""

    parents: tuple[Path, ...]
    labels: Path
    weights: tuple[float, ...] | None = None
    row_weights: RowRule = "equal"
    """How much each store counts in each row; other than `equal` only without `weights`."""
    top_k: int | None = None
    calibrate: bool = True
    threads: int | None = None
    device: str = AUTO
    """What is computed on, as `core.devices.pick_device` takes it."""
    force_unlock: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What the run did; `rows_ok + rows_failed` is every row of the store."""

    rows_ok: int
    rows_failed: int
    top_k: int
    teachers: tuple[dict[str, Any], ...]
    """Of each parent: its path, weight, trained logit scale and the scale that was used; `mean_row_weight` over the
    rows that this call labelled, where rows decide the weights."""
    chunks_written: int
    chunks_skipped: int
    seconds: float
    bytes_per_row: dict[str, float]
    labels: str
    store_id: str
