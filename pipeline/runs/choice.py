"""Which setting of a grid is the best by the measure that the grid declared before it was run, at its end or at a rung.

This module evaluates nothing: it reads results in the folders of cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from teachonce.errors import DataError
from teachonce.evaluation.result import EvaluateResult, read_result
from teachonce.runs.grid_documents import Choice
from teachonce.runs.grid_folder import CellFolder, GridFolder
from teachonce.search.tables import HELD_OUT, Choose

POINTS = 100.0  # percentage points of a fraction


@dataclass(frozen=True)
class Measured:
    """A setting by the declared rule."""

    value: float
    """The weighted mean of its measures."""
    figures: dict[str, float]
    """Each measure by itself, a mean over splits and seeds; against the template where the rule says so."""
    short: tuple[str, ...]
    """Measures in which it misses what the rule asks for at least."""


def choose(
    folder: GridFolder, rule: Choose, groups: Mapping[str, Sequence[str]], fallback: str | None = None
) -> Choice:
    """Choose among settings whose cells are all finished; of equals the first in the order of the grid.

    Args:
        folder: of the grid.
        rule: the declared measure.
        groups: setting -> digests of its cells, one a split and seed.
        fallback: the setting that is taken where none reaches what the rule asks for at least; None: the best one.

    Raises:
        DataError: a cell was not measured so.
        IntegrityError: an evaluation is not what `evaluate` writes.
    """
    settings = {group: measured([folder.cell(digest) for digest in cells], rule) for group, cells in groups.items()}
    values = {group: setting.value for group, setting in settings.items()}
    eligible = [group for group, setting in settings.items() if not setting.short]
    if not eligible:
        eligible = [fallback] if fallback in settings else list(settings)
    best = max(eligible, key=lambda group: values[group])  # `max` returns the first of equal settings
    ranking = dict(sorted(values.items(), key=lambda item: -item[1]))
    return Choice(
        group=best,
        value=values[best],
        by=rule.measures,
        metric=rule.metric,
        against=rule.against,
        figures=settings[best].figures,
        cells=tuple(groups[best]),
        ranking=ranking,
        short={group: settings[group].short for group in ranking if settings[group].short},
    )


def measured(cells: Sequence[CellFolder], rule: Choose) -> Measured:
    """What a setting reaches by a rule.

    Args:
        cells: its cells, or the folders of one rung of each.

    Raises:
        DataError: a cell was not measured so.
        IntegrityError: an evaluation is not what `evaluate` writes.
    """
    against = bool(rule.against)
    figures = {name: mean(_figure(cell, name, rule.metric, against) for cell in cells) for name in rule.measures}
    over = {name: POINTS * mean(_figure(cell, name, rule.metric, True) for cell in cells) for name in rule.least}
    return Measured(
        value=sum(share * figures[name] for name, share in rule.measures.items()),
        figures=figures,
        short=tuple(name for name, points in rule.least.items() if over[name] < points),
    )


def _figure(cell: CellFolder, measure: str, metric: str, against: bool) -> float:
    """One figure of a cell, or how much higher it is than that of the template."""
    if measure == HELD_OUT:
        trained = cell.trained()
        return _number(None if trained is None else trained.held_out_top1, cell.results, "held_out_top1")
    file = cell.evaluation(measure)
    result: EvaluateResult | None = read_result(file)
    figure = _number(None if result is None else result.figures.get(metric), file, metric)
    if not against or result is None:
        return figure
    return figure - _number(result.template_figures.get(metric), file, f"the template's {metric}")


def _number(value: float | None, file: Path, key: str) -> float:
    if value is None:
        raise DataError(
            f"{file} does not say {key}, by which the grid chooses",
            hint="for held_out set held_out above 0 in [base]",
        )
    return value
