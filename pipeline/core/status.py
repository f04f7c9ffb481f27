"""What every status says: a state, who works, the last sign of life, a pace and when it may end.

The words for states stand here once, for label stores, runs, grids and cells. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from teachonce.core.documents import LATEST
from teachonce.core.machine import ProcessMark, lives

State = Literal[
    "waiting", "starting", "running", "unknown", "stopped", "unfinished", "failed", "damaged", "dropped", "finished"
]
MEANINGS: Mapping[State, str] = {
    "waiting": "Nothing has been begun.",
    "starting": "A process works, and nothing is done yet.",
    "running": "A process works, and something is done.",
    "unknown": "The process is on another machine and has been silent for longer than its own pace explains.",
    "stopped": "Something was begun, work is left, and nobody does it.",
    "unfinished": "Work is left; whether a process does it was not looked at.",
    "failed": "The last attempt ended with an error.",
    "damaged": "What was written is no longer what it was.",
    "dropped": "The search of its grid has ended it early, because other settings did better.",
    "finished": "Nothing is left to do.",
}
"""What each state says of a label store, a run, a grid or a cell."""
CELL_WORDS: Mapping[State, str] = {"stopped": "interrupted", "unfinished": "missing"}
"""Other words for two states, for cells only: documents of `status` and `ablate` have had them from the beginning."""

PATIENCE_S = 120.0  # of silence that says nothing
PATIENT_GAPS = 10  # ... or so many times the usual gap between two signs


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The process that works, or worked last."""

    host: str
    pid: int
    alive: bool | None
    """None: it is on another machine."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How much time is left; both None where nothing can be said."""

    seconds_left: float | None
    """At the pace so far; of work that has stopped, what it would take."""
    estimated_end: str | None
    """UTC, ISO 8601; only while somebody works."""


def worker_of(mark: ProcessMark | None) -> Worker | None:
    """What is known about a process that has left its mark."""
    return None if mark is None else Worker(host=mark.host, pid=mark.pid, alive=lives(mark))


def state_of(worker: Worker | None, done: bool, anything: bool, silent_s: float, gap_s: float) -> State:
    """The state that these signs speak of.

    Args:
        worker: whoever holds the lock; None where nobody does, so that nobody works.
        done: nothing is left to do.
        anything: something is done already.
        silent_s: seconds since the last sign of life.
        gap_s: usual seconds between two signs.
    """
    if done:
        return "finished"
    if worker is None or worker.alive is False:
        return "stopped"
    if worker.alive is None and silent_s > max(PATIENCE_S, PATIENT_GAPS * gap_s):
        return "unknown"
    return "running" if anything else "starting"


def cell_word(state: State) -> str:
    """What JSON documents of `status` and `ablate` call the state of a cell: programs look for these words."""
    return CELL_WORDS.get(state, state)


def ending(left: float, rate: float | None, since: float, now: float, state: State) -> Ending:
    """When work ends that goes on at a rate.

    Args:
        left: units that were left at the time `since`.
        rate: units a second.
        since: seconds since 1970.
        now: seconds since 1970.
    """
    if state == "finished" or not rate or rate <= 0:
        return Ending(seconds_left=None, estimated_end=None)
    working = state in ("running", "starting")
    seconds = max(0.0, left / rate - (now - since if working else 0.0))
    return Ending(seconds_left=round(seconds, 1), estimated_end=iso(now + seconds) if working else None)


def iso(time: float) -> str:
    """Seconds since 1970 as UTC in ISO 8601; a time beyond the calendar is its end."""
    return (
        datetime.fromtimestamp(min(max(time, 0.0), LATEST - 1), UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z")
    )


def newest(files: Iterable[Path]) -> float | None:
    """When the newest of these was written, in seconds since 1970; None if there is none."""
    times = []
    for file in files:
        with suppress(OSError):  # another process may remove the file at any moment
            times.append(file.stat().st_mtime)
    return max(times, default=None)
