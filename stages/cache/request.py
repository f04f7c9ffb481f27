"""What `cache` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Action = Literal["list", "clear"]


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """Whether to list or to clear, and beside which store; without a store, in the user's cache folder."""

    action: Action
    labels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One working set, one file of cached features, or what a killed process had left half made."""

    path: str
    kind: Literal["working set", "unfinished", "features", "results", "half made"]
    store: str
    """Name of the label store of a working set."""
    bytes: int
    rows: int | None
    created: str
    in_use: bool


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """The entries of a cache; after `clear` those that it held before."""

    action: str
    entries: tuple[CacheEntry, ...]
    bytes: int
    """Bytes of all entries."""
    freed: int
    """Bytes that `clear` gave back."""
    skipped: tuple[str, ...]
    """Entries that `clear` left alone because a process uses them."""
