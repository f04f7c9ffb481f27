"""What an evaluation is asked for and what it answers; see `teachonce evaluate --help`. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.evaluation.choice import Entrant, SetChoice, Work

SCHEMA = 1


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
class EvaluateResult:
    """Shares are fractions of the `n` images that could be decoded."""

    top1: float
    top5: float
    macro: float
    """Mean over classes with images of their top-1."""
    ece: float
    """Expected calibration error at the model's own logit scale, 15 bins of equally many images."""
    nll: float
    """Mean -ln p of the image's class, nats."""
    n: int
    classes: int
    """Names that compete."""
    classes_seen: int
    """Competing classes with at least one image."""
    top1_interval: tuple[float, float]
    """Wilson, 95 %."""
    tied_names: int
    """Classes that share their name with another: m of them share the credit, 1/m each."""
    failed: int
    """Images that could not be decoded; they are not in n."""
    left_out: int
    """Images of the split that were not asked for: of other classes, of names taken out, without a class."""
    template: str | None
    run: str | None
    wise: float | None
    """Share of the prompts in the class features; None without prompts."""
    baseline: dict[str, Any] | None
    """With prompts: top1, top5, macro, ece, nll and the template of the bare student on the same images."""
    paired: dict[str, float | int] | None
    """With prompts: images that only they, or only the template, got right, and McNemar's exact p."""
    protocol: str | None
    manifest: str
    split: str
    chosen: str
    """Which classes, and among which names."""
    templates: tuple[str, ...]
    names_digest: str
    """The digest of the ids and names that compete."""
    digests: dict[str, str]
    """Digests of the student's weights, the whole vocabulary, the classified samples and the prompts."""
    per_class: str | None
    credits: str | None
    confused: tuple[dict[str, Any], ...]
    """The classes most often taken for one other, with the share of their images."""
    schema: int = SCHEMA


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
