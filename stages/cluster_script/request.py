"""What `cluster_script` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ClusterScriptRequest:
    """Of which description the script is made, and where it goes."""

    file: Path
    """A description with kind = "slurm": its jobs become workers of one allocation."""
    out: Path | None = None
    """The script; None: it is only returned."""


@dataclass(frozen=True, kw_only=True)
class ClusterScriptResult:
    """The script."""

    script: str
    workers: int
    out: str | None
    """Where it was written."""
