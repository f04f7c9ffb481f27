"""What `subset` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SubsetRequest:
    """What to choose; see `teachonce subset --help`."""

    labels: Path
    out: Path
    shots: int | None = None
    seed: int = 0
    top_k: int | None = None
    classes: Path | None = None
    all_names: bool = False
    clean: Path | None = None
    """The list of an audit: samples to leave out."""


@dataclass(frozen=True, kw_only=True)
class SubsetResult:
    """What was chosen."""

    samples: int
    rows: int
    """Rows of the chosen samples, all views counted."""
    classes: int
    """Classes with at least one chosen sample."""
    classes_short: int
    """Classes with fewer samples than the shots asked for; all that they have were taken."""
    short: dict[str, int]
    """Class id and number of samples of the first classes that are short."""
    left_out: int
    """Samples that the list of an audit took out, whether the rule would have chosen them or not."""
    digest: str
    out: str
