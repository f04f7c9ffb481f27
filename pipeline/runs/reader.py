"""Read one run folder of `train` for a report: its config, figures, curves and evaluations, or why it does not count.

This module changes nothing and loads no model; `reports.folder` finds runs and puts them into groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.documents import fault_of, number, read_log, read_toml
from teachonce.core.status import State
from teachonce.errors import UsageError
from teachonce.evaluation.result_files import Evaluation, read_evaluations
from teachonce.models.prompt_names import CONFIG_FILE
from teachonce.recipe.config import config_digest, later_defaults
from teachonce.recipe.config_file import flat
from teachonce.runs.folder import RunFolder
from teachonce.runs.grid_folder import CellFolder
from teachonce.runs.results import RunResults

SEED_BITS = 64  # seeds are smaller than 2^63
IDLE = "pairing"  # the event with which every call of `train` begins its work


@dataclass(frozen=True, eq=False)
class Curve:
    """One figure over a run; seconds count work only, not the time between a kill and its resume."""

    steps: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A finished run."""

    folder: Path
    name: str
    """Its path below the folder that was read."""
    seed: int
    split: int = 0
    """Number of the split of classes that a grid trained it on; 0: none."""
    config: Mapping[str, Any]
    results: RunResults
    start: Mapping[str, Any]
    """The first event: versions, digests, where labels and student were."""
    last_time: float | None
    """Of the last event, seconds since 1970."""
    loss: Curve
    held_out: Curve
    held_out_rows: int | None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    """Files of the folder that are not what was written, a sentence each; the run counts without them."""

    @property
    def draw(self) -> int:
        """One number for split and seed: runs of two settings with equal ones are compared with each other."""
        return (self.split << SEED_BITS) + self.seed

    @property
    def seconds(self) -> float:
        """Of all its calls, as far as its log tells."""
        logged = float(self.loss.seconds[-1]) if len(self.loss.seconds) else 0.0
        return max(logged, self.results.seconds)


@dataclass(frozen=True)
class Unusable:
    """A folder that is no finished, whole run, and why."""

    name: str
    kind: State
    """failed, unfinished, damaged or waiting."""
    why: str
    hint: str = ""


class _NoRun(Exception):
    """Why a folder does not count; never leaves this module."""

    def __init__(self, kind: State, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


def read_run(folder: Path, name: str) -> Run | Unusable:
    """Read a run folder; whatever is wrong with it becomes an `Unusable`.

    Args:
        folder: of `train`.
        name: what to call it.
    """
    try:
        return _read(folder, name)
    except _NoRun as reason:
        cell = CellFolder(folder)
        failure = cell.read_failure()
        if failure is not None:
            return Unusable(name, "failed", str(failure.message) or reason.why, str(failure.hint))
        lost = f"; {cell.failure.name} is damaged" if cell.failure.exists() else ""
        return Unusable(name, reason.kind, reason.why + lost)
    except OSError as problem:
        return Unusable(name, "damaged", f"cannot be read: {problem.strerror or problem}")


def _read(folder: Path, name: str) -> Run:
    files = RunFolder(folder)
    config = _config(files)
    results = _results(files)
    log_holds = results.log.holds(files.events)
    events, damaged_lines = _events(files) if log_holds else ([], 0)
    start = next((event for event in events if event.get("event") == "start"), {})
    _require_same_config(config, start)
    seed = config.get("seed", 0)
    if not isinstance(seed, int):
        raise _NoRun("damaged", "config.toml: seed is no whole number")
    clock = _working_seconds(events)
    loss, held_out = (_curve(events, clock, *which) for which in (("step", "loss"), ("held_out", "top1")))
    rows = [number(event.get("rows")) for event in events if event.get("event") == "held_out"]
    times = [time for event in events if (time := number(event.get("time"))) is not None]
    damaged = [] if log_holds else [f"{files.events.name} is not what was written: its curves and times are left out"]
    if damaged_lines:
        damaged.append(f"{files.events.name}: {damaged_lines} lines are damaged; figures are drawn without them")
    evaluations, others = read_evaluations(files.evaluations)
    damaged += [*others, *damaged_documents([files.cell], folder)]
    return Run(
        folder=folder,
        name=name,
        seed=seed,
        config=config,
        results=results,
        start=start,
        last_time=times[-1] if times else None,
        loss=loss,
        held_out=held_out,
        held_out_rows=int(rows[-1]) if rows and rows[-1] is not None else None,
        evaluations=evaluations,
        damaged=tuple(damaged),
    )


def damaged_documents(files: Iterable[Path], folder: Path) -> list[str]:
    """A sentence for each document that is there and not what was written, by its path below a folder."""
    faults = {file: fault_of(file) for file in sorted(files)}
    return [f"{file.relative_to(folder).as_posix()} {fault}" for file, fault in faults.items() if fault]


def _config(run: RunFolder) -> dict[str, Any]:
    file = run.config
    if not file.is_file() and not run.events.is_file():
        raise _NoRun("waiting", "not begun")
    if not file.is_file():
        raise _NoRun("unfinished", "config.toml is missing: the run ended before its first step")
    try:
        return later_defaults() | flat(read_toml(file), CONFIG_FILE)
    except ValueError as problem:
        raise _NoRun("damaged", f"config.toml is not TOML: {problem}") from problem
    except UsageError as problem:  # a key in its table and without it
        raise _NoRun("damaged", problem.message) from problem


def _events(run: RunFolder) -> tuple[list[dict[str, Any]], int]:
    file = run.events
    if not file.is_file():
        raise _NoRun("damaged", "events.jsonl is missing")
    try:
        return read_log(file)
    except UnicodeDecodeError as problem:
        raise _NoRun("damaged", f"events.jsonl is not UTF-8: {problem.reason}") from problem


def _results(run: RunFolder) -> RunResults:
    if not run.results.is_file():
        raise _NoRun("unfinished", "results.json is missing: the run has not come to its end")
    results = run.read_results()
    if results is None:
        fault = fault_of(run.results) or "is not what a run writes: it is of another version"
        raise _NoRun("damaged", f"{run.results.name} {fault}")
    digest = run.prompts_digest()
    if digest is None:
        raise _NoRun("damaged", f"{run.tensors.name} is missing")
    if digest != results.prompts_digest:
        raise _NoRun("damaged", f"{run.tensors.name} is not the file that results.json tells of: its SHA-256 differs")
    return results


def _require_same_config(config: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """What stands in config.toml must be what the run began with, or its figures would be shown for another config."""
    digest = config_digest(config)
    if start.get("config_digest", digest) != digest:
        raise _NoRun("damaged", "config.toml is not what the run began with (events.jsonl has another digest)")


def _working_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Seconds of work up to each event; the time between a stop and the next call does not count."""
    clock, before, seconds = 0.0, None, []
    for event in events:
        time = number(event.get("time"))
        if time is not None:
            if before is not None and event.get("event") != IDLE:
                clock += max(0.0, time - before)
            before = time
        seconds.append(clock)
    return seconds


def _curve(events: list[dict[str, Any]], clock: list[float], kind: str, key: str) -> Curve:
    points = {}
    for event, seconds in zip(events, clock, strict=True):
        step, value = number(event.get("step")), number(event.get(key))
        if event.get("event") == kind and step is not None and value is not None:
            points[int(step)] = (seconds, value)  # when a step was done twice, the later value stands
    steps = sorted(points)
    pairs = np.array([points[step] for step in steps], dtype=np.float64).reshape(-1, 2)
    return Curve(np.array(steps, dtype=np.int64), pairs[:, 0], pairs[:, 1])
