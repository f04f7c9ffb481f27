"""What an evaluation is asked for and what it answers; see `teachonce evaluate --help`. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.evaluation.choice import Entrant, SetChoice, Work
from teachonce.evaluation.result import SCHEMA


@dataclass(frozen=True, kw_only=True)
class Files:
    """Which files an evaluation writes besides its result."""

    per_class: Path | None = None
    """A table of classes; under a protocol a folder for a SET.csv of each set."""
    credits: Path | None = None
    """Each image's credit, NAME.top1.npy, with prompts also the template's and the linear reference's,
    NAME.template.top1.npy and NAME.linear.top1.npy; under a protocol a folder for those of each set."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Which model or run is evaluated on which set."""

    entrant: Entrant
    data: SetChoice
    files: Files = Files()
    work: Work = Work()
    protocol: str | None = None
    """The protocol that this set is a part of, as the result names it."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Options that only some protocols take, and the folder of the data."""

    root: Path | None = None
    manifest: str | None = None
    split: str | None = None
    vocabulary: str | None = None
    classes: str | None = None
    without: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    """Which model or run is evaluated on the sets of which protocol."""

    protocol: str
    entrant: Entrant
    """The model or run that is evaluated; where it names templates, they replace the template of every set."""
    given: Given = Given()
    files: Files = Files()
    work: Work = Work()
    skip_missing: bool = False
    """Whether the exit code stays 0 although the data of some sets are missing."""


@dataclass(frozen=True, kw_only=True)
class SetLine:
    """One line of the table; fractions."""

    set: str
    n: int
    classes: int
    """Names that compete."""
    top1: float
    template_top1: float | None
    """The top-1 of the template beside prompts; None without prompts, where `top1` is the template's."""
    gain: float | None
    p: float | None
    """McNemar, exact."""
    linear_top1: float | None
    """The top-1 of the linear reference of the run; None where it has none."""
    linear_gain: float | None
    """The linear reference's difference to the template."""
    linear_p: float | None
    """McNemar between the linear reference and the template, exact."""
    macro: float
    ece: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """The table, its means, and what could not be evaluated."""

    protocol: str
    title: str
    run: str | None
    wise: float | None
    student_digest: str
    sets: tuple[SetLine, ...]
    means: tuple[dict[str, Any], ...]
    """Over sets with the same kind of classes and names, all sets counting alike."""
    harmonic: tuple[dict[str, Any], ...]
    """H of the means of base and novel, as published; top1 of the part `all` is the joint accuracy."""
    missing: tuple[dict[str, str], ...]
    """Sets whose data are missing: which file is missing, and where to get it."""
    damaged: tuple[dict[str, str], ...]
    """Sets whose data are damaged, with the problem."""
    left_out: tuple[str, ...]
    """Sets that need an option which was not given."""
    details: dict[str, dict[str, Any]]
    """Every set's whole result."""
    exit_code: int
    """0; 3 where data are damaged; 5 where data are missing, so that the same command may go on later."""
    schema: int = SCHEMA
