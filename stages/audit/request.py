"""What `audit` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What to look through; see `teachonce audit --help`."""

    labels: Path
    out: Path = Path("audit.html")
    root: Path | None = None
    """Folder of the store's photos, for the page."""
    against: Path | None = None
    """A store of new photos, taught by the same teacher."""
    against_root: Path | None = None
    confidence: float = 0.5
    """Probability from which on a label is listed as wrong."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What was found."""

    headline: tuple[str, ...]
    samples: int
    labelled: int
    """Samples whose label was judged."""
    found: dict[str, int]
    """Samples of each kind of finding."""
    left_out: int
    """Samples that `subset` would leave out."""
    share_wrong: float | None
    """Estimated share of wrong labels."""
    confident_learning: float | None
    """The same by confident learning, from the teacher alone."""
    classes_without_photos: int
    calibration: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    compared_by: str = ""
    """What the vectors are."""
    out: str = ""
    list: str = ""
    files: str = ""
    seconds: float = 0.0
