"""What `show` prints for a person: a table of settings with a spark line each, and the result in sentences.

It looks at no folder: every figure comes from the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from teachonce.cli.console import Records, duration, number, render, show

BARS = "▁▂▃▄▅▆▇█"
SIDE_BY_SIDE = 3  # measures; more take the place of the settings' names
HEADLINES = 2  # the sentences on counts and choice; the table says the rest
MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "alike": ("●", "dim"), "untested": ("×", "dim")}


def view(values: Mapping[str, Any]) -> RenderableType:
    """The whole answer, from the keys of its JSON document."""
    head = Text.assemble((values["title"], "bold"), f"  {values['path']}")
    parts: list[RenderableType] = [head]
    if values["question"]:
        parts.append(Text(values["question"], style="dim"))
    if values["settings"]:
        parts.append(Settings(values))
    if values["config"]:
        changed = ", ".join(f"{key}={show(key, value)}" for key, value in values["config"].items())
        parts.append(Text.assemble(("not as by default: ", "cyan"), changed))
    parts += [Text(sentence) for sentence in values["headline"][:HEADLINES]]
    if values["figures"]:
        table = Table(box=None, show_header=False, pad_edge=False)
        for key, value in values["figures"].items():
            table.add_row(Text(key, style="cyan"), Text(show(key, value)))
        parts.append(table)
    if values["not_counted"]:
        parts.append(Records("not counted", values["not_counted"]))
    if values["next"]:
        parts.append(Text.assemble(("next: ", "bold cyan"), values["next"]))
    return Group(*parts)


def written(values: Mapping[str, Any]) -> RenderableType:
    """What `report` prints: the result in sentences, then what was written where."""
    figures = {key: value for key, value in values.items() if key != "headline"}
    return Group(*(Text(sentence) for sentence in values["headline"]), *render(figures))


class Settings:
    """One table, or several where there are many measures or little room; cost stands in the last."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What Rich prints in the width at hand: figures are never cut, so fewer stand side by side."""
        everything = options.update(max_width=1000)
        for most in range(SIDE_BY_SIDE, -1, -1):
            tables = self._tables(most)
            if all(console.measure(table, options=everything).minimum <= options.max_width for table in tables):
                break
        yield from tables

    def _tables(self, most: int) -> list[Table]:
        """Tables of at most so many measures; with 0 of one each, and a last one of cost alone."""
        measures: list[str] = list(self._values["measures"])
        parts = [measures[at : at + max(1, most)] for at in range(0, len(measures), max(1, most))]
        parts += [[]] if not (parts and most) else []
        return [_table(self._values, part, cost=part is parts[-1]) for part in parts]


def _table(values: Mapping[str, Any], measures: Sequence[str], cost: bool) -> Table:
    table = Table(pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("setting", overflow="fold", min_width=12)
    table.add_column("seeds", justify="right")
    for measure in measures:
        table.add_column(Text(measure.replace("_", " ")), justify="right", no_wrap=True)
    if cost:
        table.add_column("loss", no_wrap=True)
        table.add_column("time", justify="right")
        table.add_column("trained", justify="right")
    ends = _ends([setting["loss"] for setting in values["settings"]])
    for setting in values["settings"]:
        if not cost and not any(setting["measures"].get(measure) for measure in measures):
            continue  # settings that were not chosen lack this measure
        style = "bold" if setting["setting"] == values["best"] else ""
        price = (
            (sparkline(setting["loss"], *ends), duration(setting["seconds"]), number(setting["trainable_parameters"]))
            if cost
            else ()
        )
        table.add_row(
            str(setting["number"]),
            Text(setting["setting"], style=style),
            str(len(setting["seeds"])),
            *(_figure(setting["measures"].get(measure)) for measure in measures),
            *price,
        )
    for line in values["beside"]:
        if any(line["measures"].get(measure) for measure in measures):
            table.add_row(
                "–",
                Text(_name_beside(line, values), style="dim"),
                str(line["seeds"] or "–"),
                *(_figure(line["measures"].get(measure)) for measure in measures),
                *(("", "", "") if cost else ()),
            )
    return table


def _name_beside(line: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What the template or a reference is called; the numbers of its settings where references differ."""
    name, of = str(line["name"]), line["settings"]
    if not of or len(of) == len(values["settings"]):
        return name
    numbers = [str(setting["number"]) for setting in values["settings"] if setting["setting"] in of]
    return f"{name}, rows of {', '.join(numbers)}"


def _figure(figure: Mapping[str, Any] | None) -> Text:
    """`44.9 ±0.6 ▲+4.9`: mean and spread in percent, and the difference to the base in points."""
    if figure is None:
        return Text("-")
    text = Text(f"{100 * figure['top1']:.1f}")
    if figure["spread"] is not None:
        text.append(f" ±{100 * figure['spread']:.1f}", style="dim")
    if figure.get("verdict") in MARKS and figure["difference"] is not None:
        mark, style = MARKS[figure["verdict"]]
        text.append(f" {mark}{100 * figure['difference']:+.1f}", style=style)
    return text


def _ends(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    points = [point for curve in curves for point in curve]
    return (min(points), max(points)) if points else (0.0, 0.0)


def sparkline(points: Sequence[float], low: float, high: float) -> str:
    """A curve in one line of text, between ends that all curves of a table share."""
    if not points or high <= low:
        return BARS[0] * len(points)
    return "".join(BARS[round((len(BARS) - 1) * (point - low) / (high - low))] for point in points)
