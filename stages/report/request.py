"""What `report` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report on; see `teachonce report --help`."""

    folder: Path
    out: Path
    labels: Path | None = None
    """Store for the fidelity page and the sample rows; None: the one that grid or runs recorded, if it is there."""
    root: Path | None = None
    """Folder of the store's images, for sample rows."""
    student: str | None = None
    """The student, where its recorded name does not hold here."""


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What was written, and what it says."""

    headline: tuple[str, ...]
    runs: int
    settings: int
    not_counted: int
    best: str
    out: str
    bytes: int
    """Bytes of the page."""
    files: str
    """Folder with CSV and SVG."""
    files_written: int
    seconds: float
