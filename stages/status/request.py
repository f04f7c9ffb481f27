"""What `status` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StatusRequest:
    """What to look at; see `teachonce status --help`."""

    folder: Path
