"""Put a report together: one HTML page that needs nothing else, and the files beside it.

Figures come from `tables`, sentences from `words`, plots from `plots`. The template only lays them out, and escapes
everything that is not a number of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, get_args

from teachonce.core.documents import visible
from teachonce.phrases import Phrase
from teachonce.reports.csv import tables as csv_tables
from teachonce.reports.curves import Over, Panel, What, panels
from teachonce.reports.folder import HELD_OUT, Folder, Group
from teachonce.reports.origin import origin
from teachonce.reports.plots import cost, curves, differences, fidelity, gains, tail_rules
from teachonce.reports.samples import Samples
from teachonce.reports.svg import Plot
from teachonce.reports.tables import ClassGain, Measure, best_group, class_gains, measures
from teachonce.reports.words import (
    FIGURE_NAMES,
    Headline,
    as_figure,
    headline,
    interval,
    p_value,
    percent,
    points,
    protocol,
    setting_in_words,
    spread,
    value,
)

MOST_CLASSES = 10  # in a table of classes that gain, and in one of classes that lose
COSTS = {"seconds": "Seconds of training", "parameters": "Trainable parameters"}
QUANTILES = ("mean", "p50", "p90", "p99", "max")

Facts = Mapping[str, Any]
Spell = Callable[[str], str]


@dataclass(frozen=True)
class Report:
    """What a report consists of: its page and its other files."""

    html: str
    files: Mapping[str, bytes]
    """CSV and SVG files by name."""
    words: Headline
    tables: tuple[Measure, ...]
    best: str


@dataclass(frozen=True)
class _Classes:
    """One evaluation, class by class."""

    table: Measure
    plots: tuple[Plot, ...]
    group: str
    """The setting whose classes are listed."""
    gains: tuple[ClassGain, ...]
    losses: tuple[ClassGain, ...]
    widest: float
    count: int


def build(
    folder: Folder, store: Facts | str, samples: Samples | str, labels: str | None, command: str, spell: Spell = str
) -> Report:
    """Make the page and its files.

    Args:
        folder: the runs that were read.
        store: the fidelity report of the store, or the sentence that says why there is none.
        samples: rows with images, or the sentence that says why there are none.
        labels: the store that the fidelity report is of.
        command: the command that made this page.
        spell: how options of commands are spelled.
    """
    tables = measures(folder)
    best, rule = best_group(folder, tables)
    words = headline(folder, tables, best, rule)
    compared = {t.key: plot for i, t in enumerate(tables, 1) if (plot := differences(t, f"differences-{i}"))}
    drawn = [(panel, _curve_plots(folder, panel, i)) for i, panel in enumerate(panels(folder), 1)]
    classes = list(_by_class(folder, tables, best))
    costs = [
        (title, [cost(folder, t, what, f"cost-{i}-{what}") for i, t in enumerate(tables, 1) if not t.once])
        for what, title in COSTS.items()
    ]
    report = None if isinstance(store, str) else store
    shown = fidelity(report["by_k"], "fidelity") if report else []
    context = {
        "folder": folder,
        "tables": tables,
        "best": best,
        "words": words,
        "base_words": setting_in_words(folder),
        "compared": compared,
        "curves": [entry for entry in drawn if entry[1]],
        "classes": classes,
        "costs": costs,
        **_fidelity_context(store, shown),
        "quantiles": QUANTILES,
        "labels": labels,
        **_said_or_shown("samples", samples),
        "origin": origin(folder, command, spell),
        "differing": _differing(folder),
        "numbers": {g.name: i for i, g in enumerate(folder.groups, 1)},
        "means": {g.name: _means(g) for g in folder.groups},
    }
    plots = [*compared.values(), *(plot for _, group in [*drawn, *costs] for plot in group), *shown]
    plots += [plot for entry in classes for plot in entry.plots]
    files = {f"{plot.name}.svg": plot.file for plot in plots} | csv_tables(folder, tables, report)
    return Report(_rendered(context), files, words, tables, best)


def _fidelity_context(store: Mapping[str, Any] | str, plots: list[Plot]) -> dict[str, Any]:
    rules = [] if isinstance(store, str) else tail_rules(store["by_k"])
    return {**_said_or_shown("fidelity", store), "fidelity_plots": plots, "rules": rules}


def _said_or_shown(name: str, value: object) -> dict[str, Any]:
    """Return a part of the page, or the sentence that says why the page lacks that part."""
    missing = isinstance(value, str)
    return {name: None if missing else value, f"{name}_why": value if missing else ""}


def _curve_plots(folder: Folder, panel: Panel, number: int) -> list[Plot]:
    pairs: list[tuple[What, Over]] = [(what, over) for what in get_args(What) for over in get_args(Over)]
    pairs.sort(key=lambda pair: pair[0] != HELD_OUT)
    plots = [
        curves(folder, panel, what, over, f"curve-{number}-{what.replace('_', '-')}-{over}") for what, over in pairs
    ]
    return [plot for plot in plots if plot is not None]


def _by_class(folder: Folder, tables: Sequence[Measure], best: str) -> Iterator[_Classes]:
    groups = {group.name: group for group in folder.groups}
    for number, table in enumerate(tables, 1):
        gains_by_name = {name: class_gains(groups[name], table.key) for name in dict.fromkeys((best, folder.base.name))}
        gains_by_name = {name: gain for name, gain in gains_by_name.items() if gain}
        if not gains_by_name:
            continue
        plots = tuple(
            gains(gain, name, table, f"classes-{number}-{i}") for i, (name, gain) in enumerate(gains_by_name.items(), 1)
        )
        name, of_best = next(iter(gains_by_name.items()))
        more = tuple(gain for gain in of_best[:MOST_CLASSES] if gain.gain > 0)
        fewer = tuple(gain for gain in reversed(of_best[-MOST_CLASSES:]) if gain.gain < 0)
        widest = max((abs(gain.gain) for gain in (*more, *fewer)), default=1.0)
        yield _Classes(table, plots, name, more, fewer, widest, len(of_best))


def _differing(folder: Folder) -> list[tuple[str, list[tuple[str, bool]]]]:
    """List every key that some setting changes, with its value in each setting and whether that setting changed it."""
    return [
        (
            key,
            [(value(group.changes.get(key, folder.base_value(key))), key in group.changes) for group in folder.groups],
        )
        for key in folder.changed_keys
    ]


def _means(group: Group) -> dict[str, Any]:
    runs = group.runs
    return {
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "parameters": runs[0].results.trainable_parameters,
    }


def _in_sight(value: Any) -> Any:
    """A value for the page; of text from outside, also what a browser would obey rather than show."""
    return visible(value) if type(value) is str or isinstance(value, Phrase) else value


def _rendered(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_in_sight
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "interval": interval,
        "p_value": p_value,
        "value": value,
        "protocol": protocol,
        "spread": spread,
        "as_figure": as_figure,
        "figure": lambda name: FIGURE_NAMES.get(name, name),
        "svg": lambda plot: Markup(plot.inline),  # the drawing is our own, and matplotlib has escaped every text in it
    }
    environment.filters["breakable"] = lambda text: Markup(
        re.sub("([=_,])", r"\1<wbr>", str(escape(visible(str(text)))))
    )
    assets = resources.files("teachonce.reports") / "assets"
    style = Markup((assets / "report.css").read_text(encoding="utf-8"))
    return environment.from_string((assets / "report.html.jinja").read_text(encoding="utf-8")).render(
        **context, style=style
    )
