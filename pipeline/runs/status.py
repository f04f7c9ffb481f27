"""Where a training run stands, from what it leaves in its folder while it works.

This module needs neither torch nor the label store, takes no lock and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teachonce.core.documents import begins_with, number, read_log, read_object
from teachonce.core.machine import ProcessMark
from teachonce.core.status import (
    State,
    Worker,
    ending,
    iso,
    newest,
    state_of,
    worker_of,
)
from teachonce.core.strict import decode_known
from teachonce.runs.folder import RunFolder

RECENT = 20  # logged steps that the pace is taken from
_NO_LOSS = frozenset({"schema", "time", "event", "step", "gradient_norm", "learning_rate", "candidates", "forced"})

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run of `train`. Accuracies are fractions."""

    kind: Literal["train"] = "train"
    path: str
    state: State
    process: Worker | None
    """Whoever has the run's lock, alive or not; None: the run is free."""
    step: int
    steps: int | None
    """None: the run has not come so far as to say."""
    losses: dict[str, float]
    """Of the last logged step, in nats."""
    learning_rate: float | None
    gradient_norm: float | None
    held_out: dict[str, float] | None
    """`top1` at `step`, and `best_top1` at `best_step`."""
    steps_per_second: float | None
    checkpoint: int | None
    """The step that a resumed run would begin after."""
    resumed: int
    """How often the run was taken up again."""
    last_sign: str | None
    seconds_since_sign: float | None
    seconds_left: float | None
    estimated_end: str | None
    damaged: tuple[str, ...] = ()
    """Files of the folder that are not what was written, a sentence each."""


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run, even if the run has only begun."""
    run = RunFolder(folder)
    return begins_with(run.events, "start") or run.checkpoints.newest_step() is not None or run.lock.is_file()


def run_status(folder: Path, now: float) -> RunStatus:
    """Look at a run.

    Args:
        folder: for which `is_run` holds.
        now: seconds since 1970.
    """
    run = RunFolder(folder)
    events, damaged_lines = read_log(run.events, live=True)
    attempt = _attempt(events)
    steps = [event for event in events if event["event"] == "step" and number(event.get("step")) is not None]
    total = next(
        (int(e["steps"]) for e in events if e["event"] == "start" and number(e.get("steps")) is not None), None
    )
    last: Event = steps[-1] if steps else {}
    sign = newest([run.events, run.lock, run.results, *run.checkpoints.files()])
    silent = max(0.0, now - sign) if sign is not None else None
    rate, gap = _pace(attempt)
    worker = worker_of(_mark(run.lock))
    results = run.read_results()
    state = state_of(worker, results is not None, bool(steps), silent or 0.0, gap)
    step, since = int(last.get("step", 0)), float(last.get("time", now))
    end = ending(max(0, (total or 0) - step), rate if total else None, since, now, state)
    return RunStatus(
        path=str(folder),
        state=state,
        process=worker,
        step=step,
        steps=total,
        losses={name: value for name, value in last.items() if name not in _NO_LOSS and number(value) is not None},
        learning_rate=number(last.get("learning_rate")),
        gradient_norm=number(last.get("gradient_norm")),
        held_out=_held_out(events),
        steps_per_second=rate,
        checkpoint=run.checkpoints.newest_step(),
        resumed=max(0, sum(event["event"] == "pairing" for event in events) - 1),
        last_sign=iso(sign) if sign is not None else None,
        seconds_since_sign=round(silent, 1) if silent is not None else None,
        seconds_left=end.seconds_left,
        estimated_end=end.estimated_end,
        damaged=tuple(_damaged(run, results is not None, damaged_lines)),
    )


def _damaged(run: RunFolder, finished: bool, lines: int) -> Iterator[str]:
    """A sentence on each file that a report of this run would not count."""
    if run.results.exists() and not finished:
        yield f"{run.results} is not what a run writes"
    if lines:
        yield f"{run.events}: {lines} lines are damaged"


def _attempt(events: Sequence[Event]) -> Sequence[Event]:
    """The events since the run last started or resumed: the time between two attempts says nothing of the pace."""
    starts = [place for place, event in enumerate(events) if event["event"] == "pairing"]
    return events[starts[-1] :] if starts else events


def _mark(lock: Path) -> ProcessMark | None:
    """The process that holds the run's lock, or died while it held the lock; None where there is no lock."""
    if not lock.is_file():
        return None
    try:
        return decode_known(ProcessMark, read_object(lock) or {}, "lock", ValueError)
    except ValueError:  # another process is writing the file this very moment
        return ProcessMark("unknown", 0, 0.0)


def _pace(attempt: Sequence[Event]) -> tuple[float | None, float]:
    """Steps a second, None before two events with a step; and the usual seconds between two logged steps."""
    steps = [e for e in attempt if e["event"] in ("step", "pairing") and number(e.get("step")) is not None][-RECENT:]
    if len(steps) < 2:
        return None, 0.0
    seconds = steps[-1]["time"] - steps[0]["time"]
    done = steps[-1]["step"] - steps[0]["step"]
    return (done / seconds if seconds > 0 and done > 0 else None), max(0.0, seconds) / (len(steps) - 1)


def _held_out(events: Sequence[Event]) -> dict[str, float] | None:
    scores = [
        e
        for e in events
        if e["event"] == "held_out" and number(e.get("top1")) is not None and number(e.get("step")) is not None
    ]
    if not scores:
        return None
    best = max(scores, key=lambda event: event["top1"])
    return {
        "top1": scores[-1]["top1"],
        "step": scores[-1]["step"],
        "best_top1": best["top1"],
        "best_step": best["step"],
    }
