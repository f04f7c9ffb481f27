"""The plots of a report: differences to the base, curves, gains by class, cost against accuracy, fidelity.

Each plot is one small SVG with its own words; the page arranges the plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from teachonce.reports.curves import Over, Panel, What, band
from teachonce.reports.folder import Folder
from teachonce.reports.svg import (
    ALIKE,
    BETTER,
    COLOURS,
    DASHES,
    HEIGHT,
    INK,
    MARKERS,
    MUTED,
    WORSE,
    Plot,
    canvas,
    render,
    short_label,
)
from teachonce.reports.tables import ClassGain, Line, Measure
from teachonce.reports.words import percent, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COMPARED = 40  # settings in one plot of differences
LEAST_REACH = 0.5  # points: an axis reaches at least so far, so that smaller differences look small
NEAR = 9.0  # pixels at 100 an inch: texts closer than this would cover each other
AROUND = 1.25  # an axis of differences is wider than its marks by this factor
LABELS = {"loss": "training loss", "held_out": "held-out top-1, %", "steps": "steps", "seconds": "seconds of work"}
_VERDICTS = {
    "better": (BETTER, "^", "better"),
    "worse": (WORSE, "v", "worse"),
    "alike": (ALIKE, "o", "not told apart"),
    "untested": (ALIKE, "x", "no test"),
    "base": (INK, "o", "base"),
}


def differences(table: Measure, name: str) -> Plot | None:
    """Draw each setting's difference to the base: mean, seeds, 95 % over seeds (line) and over images (bar)."""
    lines = [line for line in table.lines if line.paired is not None]
    lines = sorted(lines, key=_difference, reverse=True)
    if not lines:
        return None
    shown = lines if len(lines) <= MOST_COMPARED else sorted(lines, key=lambda x: -abs(_difference(x)))[:MOST_COMPARED]
    shown = sorted(shown, key=_difference, reverse=True)
    base = next(line for line in table.lines if line.verdict == "base")
    with canvas(0.62 + 0.34 * len(shown)) as (figure, axes):
        widest = LEAST_REACH
        for place, line in enumerate(shown):
            widest = max(widest, _draw_difference(axes, place, line, base))
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_xlim(-AROUND * widest, AROUND * widest)
        axes.set_ylim(len(shown) - 0.35, -0.75)
        axes.locator_params(axis="x", nbins=6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"points from the base ({percent(base.summary.mean)})")
        words = "; ".join(f"{line.group}: {points(_difference(line))}, {_VERDICTS[line.verdict][2]}" for line in shown)
        title = f"Differences to the base on {table.title}"
        return render(figure, name, title, table.title, f"In points of top-1. {words}")


def _difference(line: Line) -> float:
    return line.paired.difference if line.paired else 0.0


def _draw_difference(axes: Axes, place: int, line: Line, base: Line) -> float:
    """Draw one setting; returns how far its marks reach."""
    colour, marker, _ = _VERDICTS[line.verdict]
    seeds = [100 * (line.by_seed[s] - base.by_seed[s]) for s in line.by_seed.keys() & base.by_seed.keys()]
    reach = [abs(x) for x in seeds]
    if line.images is not None:
        low, high = (100 * end for end in line.images)
        axes.barh(place, high - low, left=low, height=0.3, color=colour, alpha=0.25, linewidth=0)
        reach += [abs(low), abs(high)]
    if line.paired is not None and line.paired.interval is not None:
        axes.plot([100 * end for end in line.paired.interval], [place, place], color=colour, linewidth=1.1)
    axes.plot(
        seeds, [place] * len(seeds), "o", color=colour, markersize=2.6, markerfacecolor="none", markeredgewidth=0.7
    )
    axes.plot([100 * _difference(line)], [place], marker, color=colour, markersize=5.5)
    text = f"{line.number}  {short_label(line.group)}"
    axes.text(0.0, place - 0.3, text, fontsize=7.5, va="bottom", transform=axes.get_yaxis_transform())
    return max(reach, default=0.0)


def curves(folder: Folder, panel: Panel, what: What, over: Over, name: str) -> Plot | None:
    """Draw one figure of all settings of a panel: means over seeds, with bands of one standard deviation."""
    groups = {group.name: group for group in folder.groups}
    drawn: list[tuple[Any, str]] = []
    scale = 100 if what == "held_out" else 1
    with canvas() as (figure, axes):
        for place, group in enumerate(panel.groups):
            curve = band(groups[group], what, over)
            if curve is None:
                continue
            style = line_style(place)
            mean = scale * curve.mean
            few = len(curve.x) <= 16
            marks = {"marker": style["marker"], "markersize": 2.8} if what == "held_out" and few else {}
            (line,) = axes.plot(curve.x, mean, color=style["color"], linestyle=style["linestyle"], **marks)
            if curve.spread is not None:
                low, high = mean - scale * curve.spread, mean + scale * curve.spread
                axes.fill_between(curve.x, low, high, color=style["color"], alpha=0.16, linewidth=0)
            drawn.append((line, group))
        if not drawn:
            return None
        axes.set_xlabel(LABELS[over])
        axes.set_ylabel(LABELS[what])
        axes.margins(x=0.01)
        title = f"{LABELS[what].removesuffix(', %').capitalize()} by {over}"
        ends = "; ".join(f"{label} ends at {line.get_ydata()[-1]:.3g}" for line, label in drawn)
        words = f"Means over seeds, bands of one standard deviation. {ends}"
        return render(figure, name, title, title, words, drawn)


def line_style(place: int) -> dict[str, Any]:
    """Return the style of the line at a place in a panel; the base is solid ink."""
    if place == 0:
        return {"color": INK, "linestyle": "-", "marker": "o"}
    i = (place - 1) % len(COLOURS)
    return {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}


def gains(by_class: Sequence[ClassGain], group: str, table: Measure, name: str) -> Plot:
    """Draw every class by its gain, largest first: how many classes gain, how many lose, and how much."""
    values = 100 * np.array([gain.gain for gain in by_class])
    more, fewer = int((values > 0).sum()), int((values < 0).sum())
    with canvas(HEIGHT * 0.9) as (figure, axes):
        edges = np.arange(len(values) + 1)
        for mask, colour in ((values > 0, BETTER), (values < 0, WORSE)):
            axes.stairs(np.where(mask, values, 0.0), edges, fill=True, color=colour, alpha=0.75, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.set_xlim(0, len(values))
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel(f"{len(values):,} classes, by gain")
        axes.set_ylabel("gain, points")
        words = (
            f"{more} classes gain, {fewer} lose, {len(values) - more - fewer} stay; "
            f"from {values.max():+.1f} to {values.min():+.1f} points."
        )
        return render(figure, name, f"Gains by class over the template: {group}, {table.title}", group, words)


def cost(folder: Folder, table: Measure, what: str, name: str) -> Plot:
    """Draw what a setting costs against what it reaches; numbers are those of the settings in the tables."""
    with canvas(HEIGHT * 1.1) as (figure, axes):
        words, places = [], []
        for line in table.lines:
            runs = folder.groups[line.number - 1].runs
            costs = [run.seconds if what == "seconds" else float(run.results.trainable_parameters) for run in runs]
            x, y = float(np.mean(costs)), 100 * line.summary.mean
            colour, marker, _ = _VERDICTS[line.verdict]
            spread = 100 * (line.summary.spread or 0.0)
            axes.errorbar(x, y, yerr=spread or None, fmt=marker, color=colour, markersize=5, linewidth=0.9, capsize=0)
            places.append((x, y, line.number))
            words.append(f"{line.group}: {x:,.0f}, {y:.1f} %")
        axes.margins(0.14)
        _number_points(axes, places)
        axes.set_xlabel(LABELS["seconds"] if what == "seconds" else "trainable parameters")
        axes.set_ylabel(f"top-1, % ({short_label(table.title, 24)})")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        title = f"{'Seconds' if what == 'seconds' else 'Trainable parameters'} against accuracy on {table.title}"
        return render(figure, name, title, table.title, "; ".join(words))


def _number_points(axes: Axes, places: Sequence[tuple[float, float, int]]) -> None:
    """Write numbers beside points; points that lie on each other share one text."""
    axes.autoscale_view()  # only now does matplotlib know the places on paper
    shown: list[tuple[float, float, list[int]]] = []
    for x, y, number in places:
        across, up = axes.transData.transform((x, y))
        near = next(
            (written for written in shown if abs(written[0] - across) < NEAR and abs(written[1] - up) < NEAR), None
        )
        if near is None:
            shown.append((across, up, [number]))
        else:
            near[2].append(number)
    for across, up, numbers in shown:
        text = ", ".join(map(str, numbers))
        x, y = axes.transData.inverted().transform((across, up))
        axes.annotate(text, (float(x), float(y)), (4, 3), textcoords="offset points", fontsize=7.5)


def fidelity(by_k: Sequence[Mapping[str, Any]], name: str) -> list[Plot]:
    """Draw the mass inside the top k, and the divergence of each tail rule, against k."""
    ks = [line["k"] for line in by_k]
    with canvas() as (figure, axes):
        mass = [np.nan if line["mass"] is None else 100 * line["mass"] for line in by_k]
        axes.plot(ks, mass, "o-", color=INK, markersize=3)
        axes.set_xscale("log")
        axes.set_ylim(0, 102)
        _plain_ticks(axes, ks)
        axes.set_ylabel("teacher's mass inside the top k, %")
        words = "; ".join(f"k = {k}: {m:.1f} %" for k, m in zip(ks, mass, strict=True))
        plots = [render(figure, f"{name}-mass", "Mass kept against k", "Mass kept", words)]
    with canvas() as (figure, axes):
        drawn: list[tuple[Any, str]] = []
        for place, rule in enumerate(tail_rules(by_k)):
            style = line_style(place)
            values = [line[rule] if line[rule] and line[rule] > 0 else np.nan for line in by_k]
            (line,) = axes.plot(
                ks, values, color=style["color"], linestyle=style["linestyle"], marker=style["marker"], markersize=3
            )
            drawn.append((line, rule))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes, ks)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")  # matplotlib would draw powers of ten as formulas
        axes.set_ylabel("KL, nats")
        words = "; ".join(f"{rule}: {line.get_ydata()[-1]:.2g} nats at k = {ks[-1]}" for line, rule in drawn)
        plots.append(render(figure, f"{name}-kl", "Divergence of each tail rule against k", "Divergence", words, drawn))
    return plots


def tail_rules(by_k: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the tail rules that a fidelity report holds."""
    return [key for key in (by_k[0] if by_k else {}) if key not in ("k", "mass")]


def _plain_ticks(axes: Axes, ks: Sequence[int]) -> None:
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("k, classes kept of each soft label")
    axes.tick_params(color=MUTED)
