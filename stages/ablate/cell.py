"""One cell of a grid as a task: train it or go on with it, then evaluate it; what is there already is left as it is.

A worker runs one cell at a time. A cell that fails says so in its folder and leaves the others alone.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed import Reschedule, get_worker

from teachonce.cluster.client import worker_index
from teachonce.core.devices import AUTO, device_fault, take_device
from teachonce.core.documents import read_events
from teachonce.core.locks import exclusive, read_owner
from teachonce.core.machine import this_process
from teachonce.core.progress import Silent, stopped_by
from teachonce.core.status import State
from teachonce.errors import IncompleteError, TeachOnceError
from teachonce.evaluation.choice import StoredChoice
from teachonce.evaluation.contender import load_contender
from teachonce.evaluation.sets import open_set
from teachonce.evaluation.stored import open_stored
from teachonce.phrases import phrase
from teachonce.recipe.config import TrainConfig
from teachonce.runs.grid_documents import SCHEMA
from teachonce.runs.grid_folder import CellFolder, GridFolder, read_document, write_document
from teachonce.search.tables import Evaluation
from teachonce.stages import train as train_stage
from teachonce.stages.ablate.sets import evaluate_request
from teachonce.stages.evaluate.checks import check
from teachonce.stages.evaluate.scoring import score_set
from teachonce.stages.train import Pause, TrainRequest

LOOK_EVERY = 0.5  # seconds between two checks whether this cell is still wanted
MOST_DEATHS = 3  # workers that may die in a cell without a step of progress
CELL_SECONDS = 90.0  # how long a worker waits for another process that holds its cell
_TURN = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class CellJob:
    """What a worker must know to run a cell; every path holds in its working folder."""

    out: Path
    token: int
    """The token of the driver's lock: a worker whose driver has lost the lock stops."""
    digest: str
    name: str
    labels: Path
    selection: Path | None
    student: str
    prompts: Path | None
    config: TrainConfig
    root: Path | None
    threads: int | None
    device: str = AUTO
    """What the cell runs on, as `core.devices.pick_device` takes it."""
    evaluations: tuple[Evaluation, ...]
    stored: Mapping[str, StoredChoice] = field(default_factory=dict)
    """Of evaluations on rows of a store, which rows."""
    final: bool = False
    """Whether the task only evaluates, into the folder of final evaluations."""
    pause: int | None = None
    """The step after which the run is measured and left; None: it goes on to its end."""


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """How the task of a cell ended."""

    digest: str
    state: State
    """finished, failed or stopped."""
    name: str
    message: str = ""


def run_cell(job: CellJob) -> CellReport:
    """Run one cell on a worker; a cell may be run twice. Raises only what makes Dask run the task elsewhere."""
    folder = GridFolder(job.out)
    wanted = _Wanted(folder, job.token)
    with _TURN:
        if wanted.is_over():
            return CellReport(digest=job.digest, name=job.name, state="stopped")
        with stopped_by(wanted.is_over):
            try:
                take_device(job.device, worker_index())
                with _alone(folder.lock(job.digest)):
                    if job.pause is not None:
                        return _rung(job, folder, job.pause)
                    return _finals(job, folder) if job.final else _cell(job, folder)
            except Exception as problem:  # noqa: BLE001 - whatever a cell raises is its own failure; the others go on
                return _ended(job, folder, wanted, device_fault(problem) or problem)


def _cell(job: CellJob, folder: GridFolder) -> CellReport:
    cell, began = folder.cell(job.digest), time.monotonic()
    names = [evaluation.name for evaluation in job.evaluations]
    if cell.state(names) != "finished":
        _require_life(job, folder, cell)
        folder.log.write("cell_start", digest=job.digest, name=job.name, token=job.token, step=cell.step(), **_where())
        if cell.trained() is None:
            train_stage.train(_request(job, cell), Silent())
        trained = time.monotonic() - began
        lacking = cell.lacking(names)
        _evaluate(job, cell, {e: cell.evaluation(e.name) for e in job.evaluations if e.name in lacking})
        seconds = round(time.monotonic() - began, 3)
        folder.log.write(
            "cell_done",
            digest=job.digest,
            name=job.name,
            token=job.token,
            seconds=seconds,
            train_seconds=round(trained, 3),
        )
    cell.failure.unlink(missing_ok=True)
    return CellReport(digest=job.digest, name=job.name, state="finished")


def _rung(job: CellJob, folder: GridFolder, step: int) -> CellReport:
    """Train up to a rung and measure what there is; the run goes on from there if the search keeps it."""
    cell, began = folder.cell(job.digest), time.monotonic()
    rung, names = cell.rung(step), [evaluation.name for evaluation in job.evaluations]
    if rung.state(names) != "finished":
        _require_life(job, folder, cell)
        folder.log.write("cell_start", digest=job.digest, name=job.name, token=job.token, step=cell.step(), **_where())
        if rung.trained() is None:
            train_stage.train(replace(_request(job, cell), pause=Pause(step, rung.path)), Silent())
        lacking = rung.lacking(names)
        _evaluate(job, rung, {e: rung.evaluation(e.name) for e in job.evaluations if e.name in lacking})
        seconds = round(time.monotonic() - began, 3)
        folder.log.write("cell_rung", digest=job.digest, name=job.name, token=job.token, step=step, seconds=seconds)
    cell.failure.unlink(missing_ok=True)
    return CellReport(digest=job.digest, name=job.name, state="finished")


def _request(job: CellJob, cell: CellFolder) -> TrainRequest:
    return TrainRequest(
        labels=job.labels,
        student=job.student,
        out=cell.path,
        config=job.config,
        resume=cell.config.is_file(),
        threads=job.threads,
        device=job.device,
        selection=job.selection,
        root=job.root,
        init=job.prompts,
        shared=GridFolder(job.out).references,
    )


def _finals(job: CellJob, folder: GridFolder) -> CellReport:
    """Make the evaluations that only the chosen cells and the base get, each once."""
    files = {evaluation: folder.final(evaluation.name, job.digest) for evaluation in job.evaluations}
    lacking = {evaluation: file for evaluation, file in files.items() if read_document(file) is None}
    _evaluate(job, folder.cell(job.digest), lacking)
    folder.cell(job.digest).failure.unlink(missing_ok=True)
    return CellReport(digest=job.digest, name=job.name, state="finished")


def _evaluate(job: CellJob, cell: CellFolder, files: Mapping[Evaluation, Path]) -> None:
    """Evaluate a run on several sets; a result appears under its name only when all that belongs to it is there."""
    who = None
    for evaluation, file in files.items():
        stored = job.stored.get(evaluation.name)
        request = evaluate_request(evaluation, job.student, job.root, cell.path, file, job.threads, stored)
        if who is None or evaluation.wise != who.share:
            who = load_contender(request.entrant, job.threads, job.device)
        if stored is None:
            check(request)
        with nullcontext() if stored is not None else _first(GridFolder(job.out), evaluation.name):
            data = open_set(request.data, Silent()) if stored is None else open_stored(stored, who.clip)
            result = score_set(request, data, who, Silent())
            origin = {"schema": SCHEMA, "evaluation": evaluation.name, "cell": job.digest}
            write_document(file, dataclasses.asdict(result) | origin)


@contextmanager
def _first(folder: GridFolder, name: str) -> Iterator[None]:
    """Make other cells wait until one has been evaluated on a set: the set's images are then encoded already."""
    lock = folder.lock(f"evaluation-{name}")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not folder.is_measured(name):
            stack.enter_context(exclusive(lock, create=True))
            if folder.is_measured(name):
                stack.close()
        yield


def _ended(job: CellJob, folder: GridFolder, wanted: _Wanted, problem: Exception) -> CellReport:
    """What became of a cell that raised."""
    if wanted.is_leaving() and not wanted.is_called_off():
        raise Reschedule from problem  # this worker ends while the grid goes on: another worker takes the cell over
    state: State = "failed"
    if isinstance(problem, _Busy) or (wanted.is_over() and isinstance(problem, IncompleteError)):
        state = "stopped"
    said = (problem.message if isinstance(problem, TeachOnceError) else str(problem)) or type(problem).__name__
    if state == "failed":
        said = folder.cell(job.digest).fail(problem).message
    folder.log.write(f"cell_{state}", digest=job.digest, name=job.name, token=job.token, message=said)
    return CellReport(digest=job.digest, name=job.name, state=state, message=said)


class _Wanted:
    """Whether the cell of this worker is still wanted, asked once a step."""

    def __init__(self, folder: GridFolder, token: int) -> None:
        self._folder, self._token = folder, token
        self._asked_at, self._over = 0.0, False
        self._worker = _this_worker()

    def is_over(self) -> bool:
        """Whether to write a checkpoint and stop; the signs are looked at every `LOOK_EVERY` seconds."""
        now = time.monotonic()
        if not self._over and now - self._asked_at > LOOK_EVERY:
            self._asked_at = now
            self._over = self.is_called_off() or self.is_leaving()
        return self._over

    def is_called_off(self) -> bool:
        """Whether the driver ends, or another one has taken the grid over."""
        owner = read_owner(self._folder.grid)
        return self._folder.stop.exists() or owner is None or owner.token != self._token

    def is_leaving(self) -> bool:
        """Whether this worker is about to end because its time is up or its cluster closes."""
        return self._worker is not None and self._worker.status.name != "running"


def _this_worker() -> Any:
    with suppress(ValueError):  # raised outside a Dask worker
        return get_worker()
    return None


class _Busy(IncompleteError):
    """Another process runs this cell, so that the cell has not failed."""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process into a cell at a time: a worker that lost its driver may still write its last checkpoint.

    Raises:
        _Busy: it does not let go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + CELL_SECONDS
    with ExitStack() as stack:
        while stack.enter_context(exclusive(path, wait=False, create=True)) is None:
            if time.monotonic() > deadline:
                raise _Busy(
                    f"another process runs this cell ({path} is locked)",
                    hint="wait for it, or end it, and run the same command again",
                )
            time.sleep(0.2)
        yield


def _require_life(job: CellJob, folder: GridFolder, cell: CellFolder) -> None:
    """Give a cell up in which workers die again and again, before it takes all of them.

    Raises:
        IncompleteError: it has, without a step of progress.
    """
    deaths = 0
    for event in read_events(folder.events):
        if event.get("digest") != job.digest or event.get("token") != job.token:
            continue
        started = event["event"] == "cell_start" and event.get("step") == cell.step()
        deaths = deaths + 1 if started else 0
    if deaths >= MOST_DEATHS:
        raise IncompleteError(
            f"{deaths} workers died while they ran this cell (out of memory?)",
            hint=phrase(
                "a smaller batch_size, micro_batch or class_chunk, or fewer workers on a machine; then {retry_failed}"
            ),
        )


def _where() -> dict[str, Any]:
    mark = this_process()
    return {"host": mark.host, "pid": mark.pid}


def get_ready() -> None:
    """Import what cells need, while the driver prepares."""
    import teachonce.stages.train.steps  # noqa: F401
