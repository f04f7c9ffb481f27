"""What `doctor` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teachonce.errors import EnvironmentFault

Standing = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """Where stores and runs shall lie, and perhaps a model that shall work."""

    path: Path = Path()
    """A folder: its disk, file system and locks are tried."""
    model: str | None = None
    """As open_clip names it; it must be on this machine."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    standing: Standing
    found: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]
    warnings: int
    failures: int
    path: str
    model: str | None

    @property
    def exit_code(self) -> int:
        """0, or 6 where something fails."""
        return EnvironmentFault.exit_code if self.failures else 0
