"""What an evaluation is asked for and what it answers; see `teachonce evaluate --help`. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.evaluation.choice import Entrant, SetChoice, Work
from teachonce.evaluation.result import SCHEMA


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is written besides the result."""

    per_class: Path | None = None
    """A table of classes; under a protocol a folder for a SET.csv of each set."""
    credits: Path | None = None
    """Each image's credit, NAME.top1.npy, with prompts also the template's, NAME.template.top1.npy; under a protocol a
    folder for those of each set."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Who is evaluated on which set."""

    entrant: Entrant
    data: SetChoice
    files: Files = Files()
    work: Work = Work()
    protocol: str | None = None
    """The protocol that this set is a part of, as the result names it."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Options that go where a protocol asks for them, and nowhere else; and the folder of the data."""

    root: Path | None = None
    manifest: str | None = None
    split: str | None = None
    vocabulary: str | None = None
    classes: str | None = None
    without: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    """Who is evaluated on the sets of which protocol."""

    protocol: str
    entrant: Entrant
    """Who is evaluated; a template in it takes the place of every set's own."""
    given: Given = Given()
    files: Files = Files()
    work: Work = Work()
    skip_missing: bool = False
    """Sets whose data are not there are no reason for another exit code."""


@dataclass(frozen=True, kw_only=True)
class SetLine:
    """One line of the table; fractions."""

    set: str
    n: int
    classes: int
    """Names that compete."""
    top1: float
    template_top1: float | None
    """None without prompts: then top1 is the template's."""
    gain: float | None
    p: float | None
    """McNemar, exact."""
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
    """Sets whose data are not there: which file, where it comes from."""
    damaged: tuple[dict[str, str], ...]
    """Sets whose data are there and wrong."""
    left_out: tuple[str, ...]
    """Sets that need an option which was not given."""
    details: dict[str, dict[str, Any]]
    """Every set's whole result."""
    exit_code: int
    """0; 3 where data are damaged; 5 where data are missing, so that the same command may go on later."""
    schema: int = SCHEMA
