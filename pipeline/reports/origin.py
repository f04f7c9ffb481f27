"""Where the figures of a report come from: the commands, versions, digests and dates that runs and grids wrote down.

This module reads no clock: two reports of the same folder are equal to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from teachonce.core.documents import mapping, number
from teachonce.phrases import command_line
from teachonce.reports.folder import Folder
from teachonce.runs.folder import RunFolder

DIGESTS = {
    "label store": "store_id",
    "student's weights": "student_digest",
    "student's tokenizer": "student_tokenizer",
    "student's preprocessing": "student_preprocess",
    "student's structure": "student_structure",
    "class names": "vocabulary_digest",
    "selection": "selection_digest",
    "prompts at the start": "start",
}


@dataclass(frozen=True)
class Origin:
    """The origin of all figures of a report."""

    commands: tuple[str, ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    """Each fact with every value that some run has; all are shown, because runs that differ are no fair comparison."""


def origin(folder: Folder, command: str, spell: Callable[[str], str] = str) -> Origin:
    """Collect the origin of all runs that count.

    Args:
        folder: the runs and grids that were read.
        command: the command that made the report.
        spell: how the options of commands are spelled.
    """
    starts = [run.start for run in folder.runs]
    facts = [("folder", [str(folder.path)])]
    if folder.grid:
        facts.append(("grid", [folder.grid.grid_digest or "-"]))
    facts += [
        ("labels", _each(start.get("labels") for start in starts)),
        ("student", _each(start.get("student") for start in starts)),
    ]
    facts += [(what, _each(getattr(run.results, key) for run in folder.runs)) for what, key in DIGESTS.items()]
    facts.append(("teachonce", _each(start.get("teachonce") for start in starts)))
    packages = dict.fromkeys(name for start in starts for name in mapping(start.get("versions")))
    facts += [(name, _each(mapping(start.get("versions")).get(name) for start in starts)) for name in packages]
    facts += _dates(folder)
    return Origin(
        tuple(map(spell, _commands(folder, command))), tuple((what, tuple(values)) for what, values in facts if values)
    )


def _commands(folder: Folder, command: str) -> Iterable[str]:
    starts = dict.fromkeys((str(run.start.get("labels")), str(run.start.get("student"))) for run in folder.runs)
    labels, student = next(iter(starts), ("LABELS.zarr", "MODEL"))
    if folder.grid:
        labels, student = folder.grid.labels or labels, folder.grid.student or student
        yield command_line("ablate", "GRID.toml", labels=labels, student=student, out=str(folder.path))
    else:
        run = folder.runs[0]
        yield command_line("train", labels, student=student, config=str(RunFolder(run.folder).config), out="RUN")
    yield command


def _dates(folder: Folder) -> list[tuple[str, list[str]]]:
    first = [time for run in folder.runs if (time := number(run.start.get("time"))) is not None]
    last = [run.last_time for run in folder.runs if run.last_time is not None]
    return [
        ("first run began", _moments(min(first)) if first else []),
        ("last run ended", _moments(max(last)) if last else []),
    ]


def _moments(time: float) -> list[str]:
    try:
        return [datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")]
    except (OverflowError, ValueError, OSError):
        return []


def _each(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))
