"""What `index` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teachonce.stages.index.survey import IndexFault, SplitSurvey


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """Which data to look at."""

    manifest: str
    root: Path | None
    split: str | None = None
    """None: every split of the manifest."""
    digests: bool = False
    """Read released files whole and compare their published digests."""


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """The images of each split, and everything on disk that is not as the manifest says."""

    manifest: str
    title: str
    licence: str
    about: str
    root: str
    splits: tuple[SplitSurvey, ...]
    faults: tuple[IndexFault, ...]
    seconds: float
    images_per_second: float
    exit_code: int
    """0, or that of a data error when there are faults."""
