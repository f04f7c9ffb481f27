"""What the groups of a report amount to: one table a measure, with spread, paired tests and intervals over images.

It counts; `statistics` holds the tests, `report_words` says the result in sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from teachonce.evaluation.statistics import LEVEL, Paired, Summary, against_constant, bootstrap, holm, paired, summarise
from teachonce.reports.folder import HELD_OUT, Folder, Group
from teachonce.runs.reader import FIGURES, ClassFigures, Evaluation, MeasuredOn

Verdict = Literal["base", "better", "worse", "alike", "untested"]
Interval = tuple[float, float]
CreditsOf = Callable[[Evaluation], npt.NDArray[np.float32] | None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting by one measure; fractions."""

    number: int
    """Of the setting in the whole report, the base being 1."""
    group: str
    summary: Summary
    by_seed: Mapping[int, float]
    verdict: Verdict
    paired: Paired | None = None
    """Against the base; None for the base itself, and without a common seed."""
    corrected: float | None = None
    """Its p after Holm's correction over all settings of this measure."""
    images: Interval | None = None
    """95 % of the difference to the base over images (bootstrap); None without credits of each image."""
    template: Paired | None = None
    """Against the bare student with the template."""
    template_images: Interval | None = None
    further: Mapping[str, float] = field(default_factory=dict)
    """Means over seeds of the other figures: top5, macro, ece, nll."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One table: all settings by one accuracy."""

    key: str
    title: str
    once: bool
    """Only the base and the chosen setting were measured, after the choice."""
    n: int | None
    """Images; of held-out rows, of which each seed keeps other ones apart, the fewest that a run has."""
    most: int | None
    """The most that a run has."""
    classes: int | None
    template: Mapping[str, float]
    """Figures of the bare student; empty where they were not measured."""
    lines: tuple[Line, ...]
    measured_on: MeasuredOn
    """Of one evaluation; it says nothing for held-out samples."""

    @property
    def further(self) -> list[str]:
        """Names of the figures besides top-1 that some setting has."""
        return [name for name in FIGURES[1:] if any(name in line.further for line in self.lines)]

    @property
    def has_images(self) -> bool:
        """Whether some setting was compared with the base image by image."""
        return any(line.images is not None for line in self.lines)

    def line(self, group: str) -> Line | None:
        """That of one setting."""
        return next((line for line in self.lines if line.group == group), None)


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """One class: prompts against the template, means over seeds."""

    id: str
    name: str
    n: int
    top1: float
    template: float

    @property
    def gain(self) -> float:
        """Of the prompts, as a fraction."""
        return self.top1 - self.template


def measures(folder: Folder) -> tuple[Measure, ...]:
    """A table for each measure that any run has."""
    return tuple(_measure(folder, key) for key in folder.measures)


def _measure(folder: Folder, key: str) -> Measure:
    found = [evaluation for group in folder.groups for evaluation in group.evaluations(key)]
    sample = found[0] if found else None
    lines = [line for i, group in enumerate(folder.groups, 1) if (line := _line(folder.base, group, key, i))]
    corrected = holm([None if line.paired is None else line.paired.p for line in lines])
    lines = [replace(line, corrected=p, verdict=_verdict(line, p)) for line, p in zip(lines, corrected, strict=True)]
    counts = [sample.n] if sample else [run.held_out_rows for run in folder.runs if run.held_out_rows]
    return Measure(
        key=key,
        title="held-out samples" if key == HELD_OUT else key,
        once=key in folder.once,
        n=min(counts, default=None),
        most=max(counts, default=None),
        classes=sample.measured_on.classes if sample else None,
        template=sample.template if sample else {},
        lines=tuple(lines),
        measured_on=sample.measured_on if sample else MeasuredOn(),
    )


def _line(base: Group, group: Group, key: str, number: int) -> Line | None:
    values = group.values(key)
    if not values:
        return None
    evaluations = group.evaluations(key)
    template = next((e.template["top1"] for e in evaluations if "top1" in e.template), None)
    line = Line(
        number=number,
        group=group.name,
        summary=summarise(list(values.values())),
        by_seed=values,
        verdict="base",
        template=None if template is None else against_constant(list(values.values()), template),
        template_images=_over_images(evaluations, evaluations, lambda e: e.template_credits),
        further={
            name: float(np.mean(known))
            for name in FIGURES[1:]
            if (known := [e.figures[name] for e in evaluations if name in e.figures])
        },
    )
    if group is base:
        return line
    theirs = base.values(key)
    mine = [run.evaluations[key] for run in group.runs if key in run.evaluations and run.seed in theirs]
    other = [run.evaluations[key] for run in base.runs if key in run.evaluations and run.seed in values]
    return replace(line, verdict="untested", paired=paired(values, theirs), images=_over_images(mine, other))


def _verdict(line: Line, corrected: float | None) -> Verdict:
    if line.verdict == "base" or line.paired is None or corrected is None:
        return line.verdict
    if corrected >= LEVEL:
        return "alike"
    return "better" if line.paired.difference > 0 else "worse"


def _over_images(
    ours: Sequence[Evaluation], theirs: Sequence[Evaluation], which: CreditsOf = lambda e: e.credits
) -> Interval | None:
    """Interval of the difference over images, seeds averaged first; None without the same images in all of them."""
    samples = {e.image_set for e in (*ours, *theirs)}
    own, other = [e.credits for e in ours], [which(e) for e in theirs]
    here, there = ([credits for credits in side if credits is not None] for side in (own, other))
    if len(samples) != 1 or not here or not there or len(here) < len(own) or len(there) < len(other):
        return None
    return bootstrap(np.mean(here, axis=0, dtype=np.float64), np.mean(there, axis=0, dtype=np.float64))


def class_gains(group: Group, key: str) -> tuple[ClassGain, ...]:
    """Every class of an evaluation, the largest gain first; empty where no run tells of classes and template."""
    by_class: dict[str, list[ClassFigures]] = {}
    for evaluation in group.evaluations(key):
        for line in evaluation.classes:
            by_class.setdefault(line.id, []).append(line)
    gains = []
    for class_id, lines in by_class.items():
        plain = [line.template for line in lines if line.template is not None]
        if plain:
            top1 = float(np.mean([line.top1 for line in lines]))
            gains.append(ClassGain(id=class_id, name=lines[0].name, n=lines[0].n, top1=top1, template=plain[0]))
    return tuple(sorted(gains, key=lambda gain: (-gain.gain, gain.id)))


def best_group(folder: Folder, tables: Sequence[Measure]) -> tuple[str, dict[str, float]]:
    """The setting that was chosen, and by which measures.

    The grid's own choice holds. Otherwise it is the best mean by the grid's rule, or by the held-out samples, or by
    the first evaluation where nothing was held out.
    """
    known = {table.key: table for table in tables if not table.once}
    rule = {key: share for key, share in folder.choice.items() if key in known}
    rule = rule or {key: 1.0 for key in list(known)[:1]}
    if folder.chosen is not None or not known:
        return folder.chosen or folder.base.name, rule
    scores = {}
    for group in folder.groups:
        lines = {key: known[key].line(group.name) for key in rule}
        if all(lines.values()):
            scores[group.name] = sum(rule[key] * line.summary.mean for key, line in lines.items() if line)
    return max(scores, key=lambda name: scores[name]) if scores else folder.base.name, rule
