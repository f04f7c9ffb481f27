"""What `push` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """Which store to send where."""

    labels: Path
    target: Path


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What lies at the target now: every object was compared with what was sent."""

    labels: str
    target: str
    store_id: str
    files: int
    bytes: int
    sent_files: int
    """Files that were not there, or held something else."""
    sent_bytes: int
    seconds: float
