"""The result of a report in plain sentences, made from its figures: what helped, by how much, against which spread.

This module decides nothing: `tables` decides whether two settings are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from teachonce.core.status import State
from teachonce.evaluation.statistics import LEVEL, Paired, smallest_telling
from teachonce.reports.folder import HELD_OUT, Folder
from teachonce.reports.tables import Line, Measure

MOST_NAMED = 5  # settings that one sentence names
HEADINGS = {
    "better": "Better than the base",
    "worse": "Worse than the base",
    "alike": "Not told apart from the base",
    "untested": "Not tested (one common seed, or differences that are all the same)",
}
FIGURE_NAMES = {"top5": "top-5", "macro": "mean of classes", "ece": "ECE", "nll": "NLL, nats"}
KINDS: Mapping[State, str] = {
    "failed": "failed",
    "unfinished": "not finished",
    "damaged": "damaged",
    "waiting": "not begun",
    "dropped": "ended early by the search",
}


def percent(value: float | None) -> str:
    """Write a fraction in percent."""
    return "–" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """Write a difference of fractions in points, with its sign."""
    if value is None:
        return "–"
    return "±0.0" if abs(value) < 0.0005 else f"{100 * value:+.1f}".replace("-", "−")


def spread(deviation: float | None) -> str:
    """Write the spread that follows a mean; it is empty for one seed."""
    return "" if deviation is None else f" ± {100 * deviation:.1f}"


def as_figure(figure: float | None, name: str) -> str:
    """Write one of an evaluation's figures: accuracies and ECE in percent, NLL in nats."""
    return "–" if figure is None else f"{figure:.3f}" if name == "nll" else percent(figure)


def interval(ends: tuple[float, float] | None) -> str:
    """Write both ends of an interval in points."""
    return "–" if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float | None) -> str:
    """Write a p value with as many digits as mean something."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value(item: Any) -> str:
    """Write a value as a config writes it."""
    if item is None:
        return "–"
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, (list, tuple)):
        return ", ".join(map(value, item)) or "none"
    return str(item) or "none"


def counted(folder: Folder) -> str:
    """Say how many runs there are, and how many do not count."""
    runs, groups = len(folder.runs), len(folder.groups)
    seeds = sorted({run.seed for run in folder.runs})
    splits = sorted({run.split for run in folder.runs if run.split})
    of_splits = f"{_many(len(splits), 'split')} of the classes ({_listed(splits)}), " if splits else ""
    of_seeds = f"{_many(len(seeds), 'seed')} ({_listed(seeds)})"
    text = f"{_many(runs, 'run')} of {_many(groups, 'setting')}, {of_splits}{of_seeds}."
    kinds = sorted(entry.kind for entry in folder.unusable)
    if kinds:
        parts = [f"{len(list(same))} {KINDS.get(kind, kind)}" for kind, same in groupby(kinds)]
        text += f" Not counted: {', '.join(parts)}; they are listed below."
    return text


def setting_in_words(folder: Folder) -> str:
    """Describe the base by the keys that the other settings change."""
    values = {key: folder.base_value(key) for key in folder.changed_keys}
    settings = [f"{key} = {value(item)}" for key, item in values.items() if item is not None]
    return ", ".join(settings) if settings else "the config at the end of this page"


def protocol(table: Measure) -> str:
    """Say what a table's figures were measured on, as far as the evaluation says it."""
    if table.key == HELD_OUT:
        return "Training samples that each run keeps apart, another part with each seed; among all names of the run."
    facts = table.measured_on
    parts = {
        "protocol": facts.protocol,
        "data": facts.manifest,
        "split": facts.split,
        "classes": facts.chosen,
        "template": value(facts.templates) if facts.templates else None,
    }
    size = _many(table.n or 0, "image") + (f", {table.classes:,} names" if table.classes else "")
    return "; ".join([*(f"{what}: {item}" for what, item in parts.items() if item), size])


@dataclass(frozen=True)
class Statement:
    """One measure in words."""

    title: str
    lead: tuple[str, ...]
    """What the base and the best setting reach, in absolute terms and against the template."""
    verdicts: tuple[tuple[str, tuple[str, ...]], ...]
    """Headings (better, worse, not told apart, not tested), each with its settings."""


@dataclass(frozen=True)
class Headline:
    """The top of a report."""

    counted: str
    choice: str
    statements: tuple[Statement, ...]
    cautions: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Return the headline as lines of text."""
        lines = [self.counted, self.choice]
        for statement in self.statements:
            verdicts = [f"{heading}: {'; '.join(settings)}." for heading, settings in statement.verdicts]
            lines.append(" ".join([f"{statement.title}:", *statement.lead, *verdicts]))
        return [line for line in (*lines, *self.cautions) if line]


def headline(folder: Folder, tables: Sequence[Measure], best: str, rule: Mapping[str, float]) -> Headline:
    """Make the headline: counts, the choice, then each measure; measures that were made once stand last."""
    choice = _choice(folder, tables, best, rule) if len(folder.groups) > 1 else ""
    ordered = sorted(tables, key=lambda table: table.once)
    statements = tuple(_statement(table, best) for table in ordered)
    return Headline(counted(folder), choice, statements, tuple(_cautions(folder, tables)))


def _choice(folder: Folder, tables: Sequence[Measure], best: str, rule: Mapping[str, float]) -> str:
    titles = {table.key: table.title for table in tables}
    names = [titles.get(key, key) for key in rule]
    if len({round(share, 6) for share in rule.values()}) > 1:
        names = [f"{name} ({100 * share:.0f} %)" for name, share in zip(names, rule.values(), strict=True)]
    # Tables are of top-1, so without the grid's own choice top-1 decides which setting is the best.
    declared = folder.grid.choose.metric if folder.grid and folder.grid.choose else "top1"
    metric = {"top1": "top-1", "macro": "macro accuracy"}.get(declared, declared) if folder.chosen else "top-1"
    on = f"{metric}, mean over seeds on {' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}"
    waits = (
        ""
        if folder.chosen or not folder.choice
        else " The grid has not chosen: its own choice comes last, once `ablate` has finished all cells."
    )
    limits = _limits(folder)
    if best == folder.base.name:
        allowed = " that reaches them" if folder.short else ""
        return (
            f"{limits}The grid chose the base itself: no setting{allowed} has a higher {on}."
            if folder.chosen
            else f"The base itself has the highest {on}.{waits}"
        )
    lines = [line for table in tables if table.key in rule and (line := table.line(best))]
    told_apart = any(line.verdict == "better" for line in lines)
    doubt = "" if told_apart else "; paired tests of top-1 do not tell it from the base, so this may be chance"
    opening = f"The grid chose “{best}” by its {on}" if folder.chosen else f"“{best}” has the highest {on}"
    return f"{limits}{opening}{doubt}.{waits}"


def _limits(folder: Folder) -> str:
    """Say which settings could not be chosen; empty where all could."""
    if not folder.short:
        return ""
    names = [f"“{name}” ({', '.join(measures)})" for name, measures in list(folder.short.items())[:MOST_NAMED]]
    more = f" and {len(folder.short) - MOST_NAMED} more" if len(folder.short) > MOST_NAMED else ""
    return f"Short of the limits of the grid's rule: {', '.join(names)}{more}. "


def _statement(table: Measure, best: str) -> Statement:
    of = [_rows(table)] if table.n else []
    of += [f"{table.classes:,} names"] if table.classes else []
    of += ["measured once, after the choice"] if table.once else []
    title = f"On {table.title}" + (f" ({', '.join(of)})" if of else "")
    base = next((line for line in table.lines if line.verdict == "base"), None)
    if base is None:
        return Statement(title, ("The base was not measured there, so nothing is compared.",), ())
    lead = [f"The base reaches {percent(base.summary.mean)}{_spread(base)}{_beside(base, table)}."]
    chosen = table.line(best)
    if chosen is not None and chosen is not base:
        lead.append(f"“{best}” reaches {percent(chosen.summary.mean)}{_spread(chosen)}{_beside(chosen, table)}.")
    verdicts = []
    for verdict, heading in HEADINGS.items():
        lines = sorted((line for line in table.lines if line.verdict == verdict), key=lambda x: -abs(_difference(x)))
        if lines:
            verdicts.append((heading, _named(lines)))
    return Statement(title, tuple(lead), tuple(verdicts))


def _rows(table: Measure) -> str:
    """Say how many rows or images there are: each seed may hold out another number."""
    fewest, most = table.n or 0, table.most or 0
    word = "row" if table.key == HELD_OUT else "image"
    return _many(most, word) if fewest == most else f"{fewest:,} to {most:,} {word}s, by seed"


def _beside(line: Line, table: Measure) -> str:
    """Say how a setting stands to the template and to the linear reference on its rows."""
    parts = []
    if line.template is not None and "top1" in table.template:
        parts.append(_against(line.template, line.template_images, "the hand-written template", table.template["top1"]))
    reference = table.reference(line.group)
    if line.linear is not None and reference is not None:
        parts.append(_against(line.linear, line.linear_images, "the linear reference", reference.summary.mean))
    return "".join(f", {part}" for part in parts)


def _against(pair: Paired, images: tuple[float, float] | None, name: str, top1: float) -> str:
    difference = pair.difference
    way = "above" if difference > 0 else "below" if difference < 0 else "from"
    text = f"{abs(100 * difference):.1f} points {way} {name} ({percent(top1)}"
    if images is not None:
        text += f"; 95 % over images {interval(images)}"
        if images[0] <= 0 <= images[1]:
            text += ", so not told apart"
    return text + ")"


def _named(lines: Sequence[Line]) -> tuple[str, ...]:
    parts = [f"“{line.group}” {points(_difference(line))}{_how_sure(line)}" for line in lines[:MOST_NAMED]]
    return (*parts, *([f"{len(lines) - MOST_NAMED} more, in the table"] if len(lines) > MOST_NAMED else []))


def _how_sure(line: Line) -> str:
    pair = line.paired
    if pair is None:
        return " (no common seed)"
    if pair.spread is None:
        return " (one seed)"
    sure = f" (± {100 * pair.spread:.1f} between seeds"
    if line.corrected is not None:
        sure += f", p = {p_value(line.corrected)}".replace("= <", "<")
    if line.verdict == "alike" and line.images is not None and not line.images[0] <= 0 <= line.images[1]:
        sure += "; images alone tell it apart"
    return sure + ")"


def _cautions(folder: Folder, tables: Sequence[Measure]) -> list[str]:
    """Say how to read the tests that were made, and what would make them look better than they are."""
    cautions = []
    if folder.earlier:
        named = ", ".join(f"“{name}”" for name in dict.fromkeys(folder.earlier))
        now = (
            "The choice has changed since the grid was first finished: before, it was"
            if folder.chosen
            else "An earlier choice of the grid was"
        )
        more = "measured more often" if folder.chosen else "measured for it already"
        cautions.append(f"{now} {named}. What should be measured once was {more}.")
    pairs: list[Paired] = [line.paired for table in tables for line in table.lines if line.paired is not None]
    tested = [pair for pair in pairs if pair.p is not None]
    if not tested:
        return cautions + (["With one seed a setting there is no test: differences may be chance."] if pairs else [])
    fewest = min(pair.n for pair in tested)
    cautions.append(
        f"“Told apart” means p < {LEVEL:g} in a paired t test by seed, after Holm's correction over the settings of "
        f"one measure. With {fewest} seeds even a single test needs a mean difference of "
        f"{smallest_telling(fewest):.1f} times its spread: what is not told apart may still be different."
    )
    return cautions


def _spread(line: Line) -> str:
    if line.summary.spread is None:
        return " (one seed)"
    return f"{spread(line.summary.spread)} ({line.summary.n} seeds)"


def _difference(line: Line) -> float:
    return line.paired.difference if line.paired else 0.0


def _many(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
