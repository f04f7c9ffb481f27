"""What `show` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    """What to look at."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class ShowResult:
    """The essence of runs, of a store or of a results.json."""

    kind: str
    """grid, runs, run, results or store."""
    path: str
    title: str
    question: str
    runs: int
    best: str | None
    """The chosen setting of a grid, else the best by held-out samples or the first evaluation."""
    measures: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    """One a setting: number, setting, seeds, changes, seconds, trainable_parameters, final_loss, loss (a few points of
    its curve), and `measures`: by name top1, spread, difference, difference_spread, p (Holm), images (95 %),
    over_template, over_linear, verdict."""
    beside: tuple[dict[str, Any], ...]
    """What stands beside the settings: the template alone, and the linear reference on the rows of each setting; name,
    settings, seeds, and `measures`: by name top1 and spread."""
    headline: tuple[str, ...]
    not_counted: tuple[dict[str, str], ...]
    config: dict[str, Any]
    """The keys of the base that are not at their defaults, without its seed."""
    figures: dict[str, Any]
    """The figures of a results.json."""
    next: str
    """The command that shows more."""
