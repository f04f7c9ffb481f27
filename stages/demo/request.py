"""What `demo` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """Where to put everything; see `teachonce demo --help`."""

    out: Path
    seeds: int = 1
    workers: int = 1
    train_models: Path | None = None
    """Train the two shipped models anew into this folder instead; takes long."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """One line a cell: zero-shot top-1 on seen and held-out classes, means over seeds."""

    table: tuple[dict[str, Any], ...]
    paths: dict[str, str]
    seconds: float
