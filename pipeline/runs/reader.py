"""Read one run folder of `train` for a report: its config, figures, curves and evaluations, or why it does not count.

This module changes nothing and loads no model; `reports.folder` finds runs and puts them into groups.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.core.documents import cell_text, fault_of, number, read_json, read_log, read_toml
from teachonce.core.outside import NO_ARRAY, open_plain, require_plain
from teachonce.core.status import State
from teachonce.core.sums import digest_of
from teachonce.errors import IntegrityError, UsageError
from teachonce.evaluation.result import EvaluateResult, decode_result
from teachonce.models.prompt_names import CONFIG_FILE
from teachonce.recipe.config import config_digest, later_defaults
from teachonce.recipe.config_file import flat
from teachonce.runs.folder import RunFolder
from teachonce.runs.grid_folder import CellFolder
from teachonce.runs.results import RunResults

ROUNDING = 1e-6  # tolerated in the mean of credits, since files hold credits as float32
BESIDE = {
    "per_class": ".csv",
    "credits": ".top1.npy",
    "template_credits": ".template.top1.npy",
    "linear_credits": ".linear.top1.npy",
}
"""The files beside NAME.json, by the key of their digest in it."""
SEED_BITS = 64  # seeds are smaller than 2^63
MOST_IMAGES = 1 << 53  # whole numbers below it are exact as floats, too
IDLE = "pairing"  # the event with which every call of `train` begins its work


@dataclass(frozen=True, eq=False)
class Curve:
    """One figure over a run; seconds count work only, not the time between a kill and its resume."""

    steps: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassFigures:
    """One class of an evaluation."""

    id: str
    name: str
    n: int
    top1: float
    template: float | None
    """Top-1 of the bare student with the template."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOn:
    """What an evaluation's figures were measured on, as far as its document says."""

    protocol: str | None = None
    manifest: str | None = None
    split: str | None = None
    chosen: str | None = None
    """Which classes, and among which names."""
    templates: tuple[str, ...] = ()
    classes: int | None = None
    """Names that compete."""
    names_digest: str | None = None
    samples_digest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What `evaluate` said of a run on one set."""

    name: str
    figures: Mapping[str, float]
    """Those of `FIGURES` that are there, as fractions."""
    template: Mapping[str, float]
    """The same of the bare student with the hand-written template; empty if not there."""
    linear: Mapping[str, float] = field(default_factory=dict)
    """The same of the linear reference of the run; empty if not there."""
    n: int
    measured_on: MeasuredOn
    classes: tuple[ClassFigures, ...] = ()
    credits: npt.NDArray[np.float32] | None = None
    """[n] credit of each image."""
    template_credits: npt.NDArray[np.float32] | None = None
    linear_credits: npt.NDArray[np.float32] | None = None
    foreign: tuple[str, ...] = ()
    """Files beside it that are damaged or not its own, a sentence each; they are not read."""

    @property
    def image_set(self) -> tuple[int, str | None, str | None]:
        """What two evaluations must share to be compared image by image: images and competing names."""
        return self.n, self.measured_on.samples_digest, self.measured_on.names_digest


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


def read_evaluations(folder: Path) -> tuple[dict[str, Evaluation], list[str]]:
    """All whole evaluations in a folder, by name, and a sentence on each file that is none."""
    evaluations, damaged = {}, []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        evaluation = read_evaluation(file, file.stem)
        if evaluation is not None:
            evaluations[file.stem] = evaluation
        else:
            fault = fault_of(file) or "is not what `evaluate` writes: it does not count"
            damaged.append(f"{folder.name}/{file.name} {fault}")
    return evaluations, damaged


def read_evaluation(file: Path, name: str) -> Evaluation | None:
    """One result of `evaluate` and what lies beside it; None if it is not whole."""
    try:
        result = decode_result(read_json(file), str(file))
    except IntegrityError:
        return None
    figures, template, n = result.figures, result.template_figures, result.n
    if not 0.0 <= figures.get("top1", -1.0) <= 1.0 or n < 1:
        return None
    beside = file.parent / file.stem
    files = {key: Path(f"{beside}{ending}") for key, ending in BESIDE.items()}
    changed = [key for key, path in files.items() if not _is_of(path, result.digests.get(key))]
    credits, foreign = _credits(files["credits"], n, figures["top1"])
    template_credits, more = _credits(files["template_credits"], n, template.get("top1"))
    classes = () if "per_class" in changed else _class_figures(files["per_class"])
    linear_credits, of_linear = _credits(files["linear_credits"], n, result.linear_figures.get("top1"))
    foreign += more + of_linear
    foreign += tuple(
        f"{files[key].name} is not what was written: its digest differs" for key in changed if not foreign
    )
    if classes is None:
        foreign += (f"{files['per_class'].name} is no table of classes: classes are not shown",)
    return Evaluation(
        name=name,
        figures=figures,
        template=template,
        linear=result.linear_figures,
        n=n,
        measured_on=_measured_on(result),
        classes=classes or (),
        credits=None if "credits" in changed else credits,
        template_credits=None if "template_credits" in changed else template_credits,
        linear_credits=None if "linear_credits" in changed else linear_credits,
        foreign=foreign,
    )


def _is_of(file: Path, digest: str | None) -> bool:
    """Whether a file is not there, or has the digest that the result beside it tells of; early results tell none."""
    return digest is None or not file.is_file() or digest_of(file) == digest


def _measured_on(result: EvaluateResult) -> MeasuredOn:
    """What a result of any version says; an early one names its one template in the baseline."""
    early = (result.baseline or {}).get("template")
    return MeasuredOn(
        protocol=result.protocol or None,
        manifest=result.manifest or None,
        split=result.split or None,
        chosen=result.chosen or None,
        templates=result.templates or ((early,) if isinstance(early, str) and early else ()),
        classes=result.classes or None,
        names_digest=result.names_digest or None,
        samples_digest=result.digests.get("samples"),
    )


def _class_figures(file: Path) -> tuple[ClassFigures, ...] | None:
    """The table of classes beside an evaluation; empty where there is none, None where it is damaged."""
    try:
        with io.TextIOWrapper(open_plain(file), encoding="utf-8", newline="") as stream:
            lines = csv.DictReader(stream)
            whole = {"id", "name", "n", "top1"} <= set(lines.fieldnames or ())
            return tuple(_figures_of(line) for line in lines) if whole else None
    except FileNotFoundError:
        return ()
    except (OSError, csv.Error, KeyError, TypeError, ValueError, AttributeError):
        return None


def _figures_of(line: Mapping[str, str]) -> ClassFigures:
    """Raises ValueError for what is no share of whole images."""
    n, top1, template = int(line["n"]), float(line["top1"]), line.get("template_top1")
    plain = float(template) if template else None
    if not 0 <= n < MOST_IMAGES or not 0.0 <= top1 <= 1.0 or not (plain is None or 0.0 <= plain <= 1.0):
        raise ValueError(f"{n} images, {top1}, {plain}")
    return ClassFigures(cell_text(line["id"]), cell_text(line["name"]), n, top1, plain)


_NOT_COMPARED = ": its images are not compared"


def _credits(file: Path, n: int, top1: float | None) -> tuple[npt.NDArray[np.float32] | None, tuple[str, ...]]:
    """The credit of each of n images, whose mean is `top1`; if the file does not fit, a sentence that says why."""
    try:
        require_plain(file)
        credits = np.array(np.load(file, mmap_mode="r", allow_pickle=False))  # a head may claim more than is there
    except FileNotFoundError:
        return None, ()
    except NO_ARRAY:
        return None, (f"{file.name} cannot be read{_NOT_COMPARED}",)
    if not isinstance(credits, np.ndarray) or credits.dtype.kind != "f" or credits.shape != (n,):
        return None, (f"{file.name} is not the credit of {n} images{_NOT_COMPARED}",)
    mean = float(credits.mean(dtype=np.float64))
    if top1 is None or not abs(mean - top1) <= ROUNDING:  # `not <=` also refuses a mean that is NaN
        said = "no top-1" if top1 is None else f"{top1:.6g}"
        return None, (f"{file.name} has the mean {mean:.6g}, and the result says {said}{_NOT_COMPARED}",)
    return credits.astype(np.float32), ()
