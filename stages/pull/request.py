"""What `pull` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """Which store to fetch, and where it is to lie."""

    source: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class PullResult:
    """What lies on the disk now: it was verified before it got its name."""

    source: str
    labels: str
    store_id: str
    files: int
    bytes: int
    fetched_files: int
    """Files that an earlier, interrupted run had not fetched."""
    fetched_bytes: int
    seconds: float
