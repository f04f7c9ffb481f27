"""What `stop` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.core.status import Worker


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """Whom to stop; see `teachonce stop --help`."""

    labels: Path
    wait: bool = False
    """Until the run has ended."""


@dataclass(frozen=True, kw_only=True)
class StopResult:
    """Who was asked, and what came of it."""

    labels: str
    process: Worker
    """The process that writes the store, as it was when it was asked."""
    workers: int | None
    """Of the run that are known to be there; None: it has not said."""
    ended: bool
    """Whether the run has ended; without `wait` that is not known, and false."""
    chunks: int | None
    """None, as `chunks_committed`: there is no store yet, or its end was not waited for."""
    chunks_committed: int | None
    seconds: float
    said: str
    """The same in one sentence."""
