"""What the groups of a report amount to: a table for each measure, with spread, paired tests and intervals over images.

This module counts; `evaluation.statistics` holds the tests, `words` says the result in sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from teachonce.evaluation.result import FIGURES
from teachonce.evaluation.result_files import ClassFigures, Evaluation, MeasuredOn
from teachonce.evaluation.statistics import LEVEL, Paired, Summary, bootstrap, holm, paired, summarise
from teachonce.reports.folder import HELD_OUT, Folder, Group
from teachonce.runs.reader import Run

Verdict = Literal["base", "better", "worse", "alike", "untested"]
Side = Literal["template", "linear"]
Interval = tuple[float, float]
CreditsOf = Callable[[Evaluation], npt.NDArray[np.float32] | None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting by one measure; figures are fractions."""

    number: int
    """Number of the setting in the whole report; the base has number 1."""
    group: str
    summary: Summary
    by_seed: Mapping[int, float]
    verdict: Verdict
    paired: Paired | None = None
    """The comparison with the base; None for the base itself, and without a common seed."""
    corrected: float | None = None
    """The p value of that comparison after Holm's correction over all settings of this measure."""
    images: Interval | None = None
    """95 % interval of the difference to the base over images (bootstrap); None without credits of each image."""
    template: Paired | None = None
    """The comparison with the bare student with the template."""
    template_images: Interval | None = None
    linear: Paired | None = None
    """The comparison with the linear reference on the same rows."""
    linear_images: Interval | None = None
    further: Mapping[str, float] = field(default_factory=dict)
    """Means over seeds of the other figures: top5, macro, ece, nll."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The linear reference of one setting's rows by one measure."""

    settings: tuple[str, ...]
    """The settings whose rows it is fitted on: with the same seed, all of them have the same one."""
    summary: Summary
    template: Paired | None
    """Its comparison with the template."""
    template_images: Interval | None
    further: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One table: all settings by one accuracy."""

    key: str
    title: str
    once: bool
    """Whether only the base and the chosen setting were measured, after the choice."""
    n: int | None
    """Number of images. Each seed holds out other rows, and each split has other classes, so for rows of the store this
    is the fewest that a run has."""
    most: int | None
    """The largest number of images or rows that a run has."""
    classes: int | None
    template: Mapping[str, float]
    """Figures of the bare student; empty where they were not measured."""
    references: tuple[Reference, ...]
    """The linear references, one for each selection of rows; empty where no run has one."""
    lines: tuple[Line, ...]
    measured_on: MeasuredOn
    """What one evaluation measured on: protocol, manifest, split, templates; it says nothing for held-out samples."""

    @property
    def further(self) -> list[str]:
        """Return the names of the figures besides top-1 that some setting has."""
        return [name for name in FIGURES[1:] if any(name in line.further for line in self.lines)]

    def reference(self, group: str) -> Reference | None:
        """The linear reference on the rows of one setting."""
        return next((reference for reference in self.references if group in reference.settings), None)

    @property
    def has_images(self) -> bool:
        """Whether some setting was compared with the base image by image."""
        return any(line.images is not None for line in self.lines)

    def line(self, group: str) -> Line | None:
        """Return the line of one setting."""
        return next((line for line in self.lines if line.group == group), None)


@dataclass(frozen=True, kw_only=True)
class ClassGain:
    """One class: the prompts against the template, means over seeds."""

    id: str
    name: str
    n: int
    top1: float
    template: float

    @property
    def gain(self) -> float:
        """How much higher the prompts' accuracy is than the template's, as a fraction."""
        return self.top1 - self.template


def measures(folder: Folder) -> tuple[Measure, ...]:
    """Make a table for each measure that any run has."""
    return tuple(_measure(folder, key) for key in folder.measures)


def _measure(folder: Folder, key: str) -> Measure:
    evaluations = [evaluation for group in folder.groups for evaluation in group.evaluations(key)]
    sample = evaluations[0] if evaluations else None
    lines = [line for i, group in enumerate(folder.groups, 1) if (line := _line(folder.base, group, key, i))]
    corrected = holm([None if line.paired is None else line.paired.p for line in lines])
    lines = [replace(line, corrected=p, verdict=_verdict(line, p)) for line, p in zip(lines, corrected, strict=True)]
    template: Mapping[str, float]
    if key in folder.of_each_draw:
        counts, template = [evaluation.n for evaluation in evaluations], _mean_template(folder, key)
    else:
        counts = [sample.n] if sample else [run.held_out_rows for run in folder.runs if run.held_out_rows]
        template = sample.template if sample else _mean_held_out(folder.base)
    return Measure(
        key=key,
        title="held-out samples" if key == HELD_OUT else key,
        once=key in folder.once,
        n=min(counts, default=None),
        most=max(counts, default=None),
        classes=sample.measured_on.classes if sample else None,
        template=template,
        references=_references(folder, key),
        lines=tuple(lines),
        measured_on=sample.measured_on if sample else MeasuredOn(),
    )


def _line(base: Group, group: Group, key: str, number: int) -> Line | None:
    values = group.values(key)
    if not values:
        return None
    evaluations = group.evaluations(key)
    line = Line(
        number=number,
        group=group.name,
        summary=summarise(list(values.values())),
        by_seed=values,
        verdict="base",
        template=paired(values, _beside(group, key, "template")),
        template_images=_over_images(evaluations, evaluations, lambda e: e.template_credits),
        linear=paired(values, _beside(group, key, "linear")),
        linear_images=_over_images(evaluations, evaluations, lambda e: e.linear_credits),
        further=_further([evaluation.figures for evaluation in evaluations]),
    )
    if group is base:
        return line
    base_values = base.values(key)
    paired_here = [run.evaluations[key] for run in group.runs if key in run.evaluations and run.draw in base_values]
    paired_base = [run.evaluations[key] for run in base.runs if key in run.evaluations and run.draw in values]
    return replace(
        line, verdict="untested", paired=paired(values, base_values), images=_over_images(paired_here, paired_base)
    )


def _beside(group: Group, measure: str, side: Side) -> dict[int, float]:
    """The top-1 by draw of what stands beside prompts: the template, or the linear reference on their rows."""
    by_draw: dict[int, list[float]] = {}
    for run in group.runs:
        value = _of_run(run, measure, side)
        if value is not None:
            by_draw.setdefault(run.draw, []).append(value)
    return {draw: sum(values) / len(values) for draw, values in sorted(by_draw.items())}


def _of_run(run: Run, measure: str, side: Side) -> float | None:
    if measure == HELD_OUT:
        results = run.results
        return results.template_held_out_top1 if side == "template" else results.linear_held_out_top1
    evaluation = run.evaluations.get(measure)
    if evaluation is None:
        return None
    return (evaluation.template if side == "template" else evaluation.linear).get("top1")


def _further(all_figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure besides top-1 over the runs that have it."""
    reported = {name: [figures[name] for figures in all_figures if name in figures] for name in FIGURES[1:]}
    return {name: float(np.mean(values)) for name, values in reported.items() if values}


def _references(folder: Folder, key: str) -> tuple[Reference, ...]:
    """The linear references of a measure, in the order of the settings; settings with equal figures share one."""
    shared: list[tuple[dict[int, float], list[Group]]] = []
    for group in folder.groups:
        by_draw = _beside(group, key, "linear")
        alike = next((groups for values, groups in shared if by_draw.items() <= values.items()), None)
        if by_draw and alike is None:
            shared.append((by_draw, [group]))
        elif by_draw and alike is not None:
            alike.append(group)
    references = []
    for values, groups in shared:
        evaluations = groups[0].evaluations(key)
        references.append(
            Reference(
                settings=tuple(group.name for group in groups),
                summary=summarise(list(values.values())),
                template=paired(values, _beside(groups[0], key, "template")),
                template_images=_over_images(
                    evaluations, evaluations, lambda e: e.template_credits, lambda e: e.linear_credits
                ),
                further=_further([evaluation.linear for evaluation in evaluations]),
            )
        )
    return tuple(references)


def _mean_template(folder: Folder, key: str) -> dict[str, float]:
    """The figures of the bare student, the mean over splits and seeds, each of which has other images."""
    by_draw = {run.draw: run.evaluations[key].template for run in folder.runs if _has_template(run, key)}
    return {
        name: float(np.mean([figures[name] for figures in by_draw.values()]))
        for name in FIGURES
        if by_draw and all(name in figures for figures in by_draw.values())
    }


def _mean_held_out(base: Group) -> dict[str, float]:
    """The template's top-1 on held-out samples, the mean over seeds, each of which holds out others."""
    by_draw = _beside(base, HELD_OUT, "template")
    return {"top1": float(np.mean(list(by_draw.values())))} if by_draw else {}


def _has_template(run: Run, key: str) -> bool:
    return key in run.evaluations and "top1" in run.evaluations[key].template


def _verdict(line: Line, corrected: float | None) -> Verdict:
    if line.verdict == "base" or line.paired is None or corrected is None:
        return line.verdict
    if corrected >= LEVEL:
        return "alike"
    return "better" if line.paired.difference > 0 else "worse"


def _over_images(
    evaluations: Sequence[Evaluation],
    base_evaluations: Sequence[Evaluation],
    which: CreditsOf = lambda e: e.credits,
    ours: CreditsOf = lambda e: e.credits,
) -> Interval | None:
    """Return the interval of the difference over images, seeds averaged first; None if the images are not the same."""
    samples = {e.image_set for e in (*evaluations, *base_evaluations)}
    credits_here, credits_base = [ours(e) for e in evaluations], [which(e) for e in base_evaluations]
    present_here, present_base = (
        [credits for credits in side if credits is not None] for side in (credits_here, credits_base)
    )
    if (
        len(samples) != 1
        or not present_here
        or not present_base
        or len(present_here) < len(credits_here)
        or len(present_base) < len(credits_base)
    ):
        return None
    return bootstrap(np.mean(present_here, axis=0, dtype=np.float64), np.mean(present_base, axis=0, dtype=np.float64))


def class_gains(group: Group, key: str) -> tuple[ClassGain, ...]:
    """List every class of an evaluation, the largest gain first; it is empty if no run has classes and template."""
    by_class: dict[str, list[ClassFigures]] = {}
    for evaluation in group.evaluations(key):
        for line in evaluation.classes:
            by_class.setdefault(line.id, []).append(line)
    gains = []
    for class_id, lines in by_class.items():
        plain = [line.template for line in lines if line.template is not None]
        if plain:
            top1 = float(np.mean([line.top1 for line in lines]))
            template = plain[0] if len(set(plain)) == 1 else float(np.mean(plain))  # splits and seeds have other images
            gains.append(ClassGain(id=class_id, name=lines[0].name, n=lines[0].n, top1=top1, template=template))
    return tuple(sorted(gains, key=lambda gain: (-gain.gain, gain.id)))


def best_group(folder: Folder, tables: Sequence[Measure]) -> tuple[str, dict[str, float]]:
    """Return the setting that was chosen, and the measures of the choice.

    The grid's own choice holds. Otherwise the setting with the best mean is taken, by the grid's rule, or by the
    held-out samples, or by the first evaluation where nothing was held out.
    """
    repeated = {table.key: table for table in tables if not table.once}
    rule = {key: share for key, share in folder.choice.items() if key in repeated}
    rule = rule or {key: 1.0 for key in list(repeated)[:1]}
    if folder.chosen is not None or not repeated:
        return folder.chosen or folder.base.name, rule
    scores = {}
    for group in folder.groups:
        lines = {key: repeated[key].line(group.name) for key in rule}
        if all(lines.values()):
            scores[group.name] = sum(rule[key] * line.summary.mean for key, line in lines.items() if line)
    return max(scores, key=lambda name: scores[name]) if scores else folder.base.name, rule
