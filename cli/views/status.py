"""What `status` shows a person: a few lines and bars on where the work stands.

It looks at no folder: every figure comes from the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from teachonce.cli.console import Records, duration, label, number, show
from teachonce.cli.views.workers import worker_lines
from teachonce.core.status import State

BAR = 24
WORDS: Mapping[State, str] = {
    "starting": "starting",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped: nobody works on it",
    "unknown": "no sign of life, and its process is on another machine",
    "damaged": "damaged: nobody works on it",
}
COLOURS: Mapping[State, str] = {
    "running": "green",
    "starting": "green",
    "finished": "cyan",
    "stopped": "yellow",
    "unknown": "yellow",
    "damaged": "red",
}
Line = tuple[str, str | Text]


def view(values: Mapping[str, Any]) -> RenderableType:
    """The whole answer, from the keys of its JSON document."""
    head = Text.assemble(f"{values['path']}: {values['kind']}, ", (WORDS[values["state"]], COLOURS[values["state"]]))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, text in LINES[values["kind"]](values):
        table.add_row(name, text)
    for sentence in values.get("damaged", ()):
        table.add_row("damaged", sentence)
    parts: list[RenderableType] = [head, table]
    if values.get("open_cells"):
        parts.append(Records("cells", [_cell(cell) for cell in values["open_cells"]]))
    if values.get("workers"):
        parts.append(Records("workers", worker_lines(values["workers"])))
    return Group(*parts)


def _store(values: Mapping[str, Any]) -> Iterator[Line]:
    if values["chunks"] is None:
        yield "chunks", "none yet: models are being loaded, or images counted"
    else:
        yield "chunks", _bar(values["chunks_committed"], values["chunks"], "committed")
        rows = f"{number(values['rows_committed'])} of {number(values['rows'])}, {number(values['rows_failed'])} failed"
        yield "rows", rows + _rate(values["rows_per_second"], "rows")
        if len(values["groups"]) > 1:
            parts = (f"{group['group']} {group['chunks_committed']}" for group in values["groups"])
            yield "chunks of each", ", ".join(parts)
        unreadable = sum(group["unreadable"] for group in values["groups"])
        if unreadable:
            yield "damaged", f"{unreadable} ledger records; `teachonce verify {values['path']}` says which"
    if values.get("seconds_since_stop") is not None:
        yield "stop", f"asked for {duration(values['seconds_since_stop'])} ago: what is under way ends, nothing begins"
    yield from _ends(values)
    if values["state"] == "stopped":
        whole = values["chunks"] is not None and values["chunks_committed"] == values["chunks"]
        left = (
            f"only reads all chunks back, as `teachonce verify {values['path']}` does" if whole else "goes on from here"
        )
        yield "next", f"the same `{values['made_by']}` again {left}"


def _run(values: Mapping[str, Any]) -> Iterator[Line]:
    if values["steps"] is None:
        yield "steps", "none yet"
    else:
        yield (
            "steps",
            Text.assemble(_bar(values["step"], values["steps"], "done"), _rate(values["steps_per_second"], "steps")),
        )
    if values["losses"]:
        more = {"learning rate": values["learning_rate"], "gradient norm": values["gradient_norm"]}
        figures = values["losses"] | {name: value for name, value in more.items() if value is not None}
        yield "last step", ", ".join(f"{label(name)} {number(value)}" for name, value in figures.items())
    held_out = values["held_out"]
    if held_out is not None:
        best = f"best {show('top1', held_out['best_top1'])} at {held_out['best_step']}"
        yield "held out", f"top-1 {show('top1', held_out['top1'])} at step {held_out['step']}, {best}"
    if values["checkpoint"] is not None and values["state"] != "finished":
        yield "checkpoint", f"step {number(values['checkpoint'])}"
    yield from _ends(values)
    if values["state"] == "stopped":
        yield "next", "the same `teachonce train` with --resume goes on from the checkpoint"


def _grid(values: Mapping[str, Any]) -> Iterator[Line]:
    cells = values["cells"]
    dropped = cells.get("dropped", 0)
    total = dropped + sum(cells[name] for name in ("finished", "running", "failed", "damaged", "waiting"))
    yield "cells", _bar(cells["finished"], total, "finished")
    others = ["running", "failed", *(["damaged"] if cells["damaged"] else []), "waiting"]
    ended = [f"{dropped} ended early by the search"] if dropped else []
    yield "others", ", ".join([*(f"{cells[name]} {name}" for name in others), *ended])
    if values["seconds_per_cell"]:
        yield "a cell took", duration(values["seconds_per_cell"])
    yield from _ends(values)
    if values["state"] in ("stopped", "damaged") and (cells["waiting"] or values.get("damaged")):
        yield "next", "the same `teachonce ablate` again goes on from here"


LINES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Line]]] = {"labels": _store, "train": _run, "ablate": _grid}


def _ends(values: Mapping[str, Any]) -> Iterator[Line]:
    if values["seconds_left"] is not None:
        left = duration(values["seconds_left"])
        end = values["estimated_end"]
        yield "left", f"{left} at this pace" if end is None else f"{left}, ends about {_local(end)}"
    process = values.get("process")
    if process is not None:
        alive = {True: "alive", False: "has ended", None: "cannot be asked from here"}[process["alive"]]
        yield "process", f"{process['pid']} on {process['host']}, {alive}"
    if values["seconds_since_sign"] is not None and values["state"] != "finished":
        yield "last sign", f"{duration(values['seconds_since_sign'])} ago"


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    done = "-" if cell["steps"] is None else f"{cell['step']}/{cell['steps']}"
    silent = cell["seconds_since_sign"]
    row = {
        "cell": cell["name"],
        "state": cell["state"],
        "steps": done,
        "loss": cell["loss"],
        "last sign": "-" if silent is None else f"{duration(silent)} ago",
    }
    problem = " ".join(part for part in (cell["problem"], cell["hint"] and f"({cell['hint']})") if part)
    return row | ({"problem": problem} if problem else {})


def _bar(done: int, total: int, what: str) -> Text:
    share = done / total if total else 1.0
    full = round(BAR * min(1.0, share))
    return Text.assemble(("█" * full, "cyan"), ("░" * (BAR - full), "dim"), f" {done:,} of {total:,} {what}")


def _rate(rate: float | None, unit: str) -> str:
    return "" if rate is None else f", {number(rate)} {unit}/s"


def _local(end: str) -> str:
    """The time of day where the person sits; with the date if it is another day."""
    then = datetime.fromisoformat(end).astimezone()
    today = then.date() == datetime.now().astimezone().date()
    return then.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
