"""The folder of a grid: where its files lie, which are whole, and to which store and student the folder belongs.

This module starts no run. A cell is finished when its run is, and when each evaluation that all cells get is there.

    OUT/grid.json                   the grid as it was last run, with all its cells
    OUT/cells/DIGEST/               a run folder of `train`; besides cell.json, failure.json, evaluations/NAME.json, and
                                    rungs/STEP/ with what a search has measured after so many steps
    OUT/stores/, OUT/selections/    what was derived from the label store for cells
    OUT/references/                 linear references, one for cells on the same rows
    OUT/final/NAME-DIGEST.json      evaluations that only chosen cells and the base get
    OUT/search.json                 which settings a search has ended early, and by which figures
    OUT/results.json, events.jsonl  what came out; what happened
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from teachonce.core.documents import read_json, read_object, sealed
from teachonce.core.files import atomic_write_bytes, drafts
from teachonce.core.status import State, cell_word
from teachonce.errors import FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.models.spec import unlike
from teachonce.phrases import Option, another, option, phrase, respelled
from teachonce.runs.folder import LOG, RESULTS, RUNGS, RunFolder
from teachonce.runs.grid_documents import (
    SCHEMA,
    CellDocument,
    CellFailure,
    GridDocument,
    GridResults,
    SearchDocument,
    decode_cell,
    decode_failure,
    decode_grid,
    decode_grid_results,
    decode_search,
)
from teachonce.runs.log import RunLog
from teachonce.runs.results import RunResults

RETRY = phrase("once the cause is mended run the same command with {retry_failed}")
PLACES = {"root", "manifest", "store", "vocabulary", "classes", "without"}
"""Of an evaluation: where something lies. What is there is compared by content, with the results of the cells."""
CELL_STATES: tuple[State, ...] = ("finished", "failed", "unfinished", "damaged")
LATER_STATES: tuple[State, ...] = ("dropped",)  # documents have them only where a cell is in one
GRID, SEARCH, STOP = "grid.json", "search.json", "stop"
CELLS, STORES, SELECTIONS, FINAL, LOCKS = "cells", "stores", "selections", "final", "locks"
REFERENCES = "references"
OURS = {GRID, SEARCH, CELLS, REFERENCES, STORES, SELECTIONS, FINAL, RESULTS, LOG, LOCKS, STOP}


@dataclass(frozen=True)
class GridFolder:
    """The folder of a grid, which may not be there yet."""

    path: Path

    @property
    def grid(self) -> Path:
        """What the grid is; the lock lies beside it."""
        return self.path / GRID

    @property
    def results(self) -> Path:
        """What came out."""
        return self.path / RESULTS

    @property
    def search(self) -> Path:
        """What the rungs of a search have decided."""
        return self.path / SEARCH

    @property
    def stop(self) -> Path:
        """There while a driver that ends waits for its cells to write their checkpoints."""
        return self.path / STOP

    @property
    def events(self) -> Path:
        """What happened to cells, a line each; drivers and workers append to it."""
        return self.path / LOG

    @property
    def log(self) -> RunLog:
        """The log in `events`."""
        return RunLog(self.events)

    @property
    def references(self) -> Path:
        """The folder of linear references, which cells on the same rows share."""
        return self.path / REFERENCES

    @property
    def cells(self) -> Path:
        """The folder with a run folder for each cell."""
        return self.path / CELLS

    def cell(self, digest: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.cells / digest)

    def each_cell(self) -> list[CellFolder]:
        """The folders of all cells that were ever begun here, also of those that grid.json has no more."""
        return [CellFolder(folder) for folder in sorted(self.cells.glob("*"))]

    def cells_there(self) -> list[CellDocument]:
        """What the folders of the cells say of themselves; a cell whose cell.json is damaged is left out."""
        cells = []
        for folder in self.each_cell():
            with suppress(IntegrityError):
                cells.append(decode_cell(read_json(folder.cell), str(folder.cell)))
        return cells

    def is_measured(self, evaluation: str) -> bool:
        """Whether some cell has its result of an evaluation."""
        return any(cell.evaluation(evaluation).exists() for cell in self.each_cell())

    def lock(self, name: str) -> Path:
        """A lock of workers: that of a cell's digest, or of `evaluation-NAME`. The driver's lies beside grid.json."""
        return self.path / LOCKS / name

    def store(self, digest: str) -> Path:
        """A derived label store."""
        return self.path / STORES / f"{digest}.zarr"

    def selection(self, digest: str) -> Path:
        """A selection file."""
        return self.path / SELECTIONS / f"{digest}.json"

    def final(self, evaluation: str, digest: str) -> Path:
        """An evaluation that only chosen cells and the base get."""
        return self.path / FINAL / f"{evaluation}-{digest}.json"

    def read_grid(self) -> GridDocument:
        """The grid that the folder holds.

        Raises:
            IntegrityError: grid.json is damaged, or not there.
        """
        return decode_grid(read_json(self.grid), str(self.grid))

    def read_results(self) -> GridResults | None:
        """What came out; None where `results` is not there, or is not what `ablate` writes."""
        with suppress(IntegrityError):
            return decode_grid_results(read_json(self.results), str(self.results))
        return None

    def read_search(self) -> SearchDocument:
        """What the rungs have decided; nothing where `search` is not there, or is not what `ablate` writes."""
        with suppress(IntegrityError):
            if self.search.is_file():
                return decode_search(read_json(self.search), str(self.search))
        return SearchDocument()

    def stored(self) -> GridDocument | None:
        """The grid that the folder holds; None where no grid was run here yet.

        Raises:
            UsageError: the folder holds something else.
            IntegrityError: as `read_grid`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; " + option("out") + " is a folder", hint=another("out"))
        if self.grid.is_file():
            return self.read_grid()
        held = {item.name for item in self.path.iterdir()} if self.path.exists() else set()
        left = {draft.name for draft in drafts(self.path)}  # by a process that was killed; who writes next removes it
        foreign = {name for name in held - left if not name.startswith(f"{GRID}.lock")} - OURS
        cells = self.each_cell()
        # A lost grid.json costs nothing: cells are found by their digests.
        if foreign or not all(cell.cell.is_file() for cell in cells):
            raise UsageError(
                f"{self.path} is not empty and holds no grid", hint=phrase("{another out}; nothing was changed")
            )
        return None

    def require_ours(self, wanted: GridDocument) -> None:
        """Refuse a folder whose cells belong to another store or student, or were evaluated on something else.

        More cells and further evaluations are no difference: cells are found by their digests.

        Args:
            wanted: the grid that is to be run.

        Raises:
            FingerprintError: names every difference.
            UsageError, IntegrityError: as `stored`.
        """
        stored = self.stored()
        if stored is None:
            return
        different = [
            f"{what}: there {there!r}, here {here!r}"
            for what, there, here in (
                ("label store", stored.content_id, wanted.content_id),
                ("student", stored.student_digest, wanted.student_digest),
            )
            if there != here
        ]
        parts = unlike(stored.student_behaviour, wanted.student_behaviour)
        different += [f"student: the same weights and another {parts}"] if parts else []
        before = {evaluation.name: evaluation for evaluation in stored.evaluations}
        for evaluation in wanted.evaluations:
            old = asdict(before.get(evaluation.name, evaluation))
            different += [
                f"evaluation {evaluation.name}: {key}: there {old[key]!r}, here {value!r}"
                for key, value in asdict(evaluation).items()
                if key not in PLACES and old[key] != value
            ]
        if different:
            raise FingerprintError(
                f"{self.path} holds another grid ({stored.title!r}, labels {stored.labels}, student "
                f"{stored.student}):\n  " + "\n  ".join(different),
                hint=phrase("{another out}; for another data set give the evaluation a new name"),
            )


@dataclass(frozen=True)
class CellFolder(RunFolder):
    """The folder of one cell: that of its run, with what `ablate` lays beside."""

    def rung(self, step: int) -> CellFolder:
        """What the run was after so many steps, as a search has measured it: prompts, results and evaluations."""
        return CellFolder(self.path / RUNGS / str(step))

    def trained(self) -> RunResults | None:
        """What the run came to; None before its end.

        Raises:
            IntegrityError: the prompts are no longer those of the run.
        """
        results = self.read_results()
        if results is None:
            return None
        digest = self.prompts_digest() or "no file"
        if digest != results.prompts_digest:
            raise IntegrityError(
                f"{self.tensors} is not what its run wrote: expected SHA-256 {results.prompts_digest}, found {digest}",
                hint=f"restore it, or remove {self.path} to train this cell again",
            )
        return results

    def damage(self) -> IntegrityError | None:
        """What is wrong with a finished run whose prompts are no longer those that it wrote."""
        try:
            self.trained()
        except IntegrityError as problem:
            return problem
        return None

    def lacking(self, evaluations: Sequence[str]) -> list[str]:
        """The evaluations that are not there, or not whole."""
        return [name for name in evaluations if read_document(self.evaluation(name)) is None]

    def state(self, evaluations: Sequence[str]) -> State:
        """Where the cell stands: finished, failed, damaged or unfinished; no lock and no process is looked at."""
        try:
            trained = self.trained() is not None
        except IntegrityError:
            return "damaged"
        if trained and not self.lacking(evaluations):
            return "finished"
        return "failed" if self.failure.is_file() else "unfinished"

    def read_failure(self) -> CellFailure | None:
        """Why the last attempt failed; None where `failure` is not there, or is not what `ablate` writes."""
        with suppress(IntegrityError):
            return decode_failure(read_json(self.failure), str(self.failure))
        return None

    def problem(self) -> CellFailure | None:
        """What the cell is listed with: its damage, else why the last attempt failed."""
        damage = self.damage()
        if damage is not None:
            return CellFailure(kind=type(damage).__name__, message=damage.message, hint=damage.hint)
        if not self.failure.is_file():
            return None
        failure = self.read_failure() or CellFailure(
            kind="IntegrityError",
            message=f"{self.failure} is damaged: why the cell failed is lost",
            hint=phrase("the same command with {retry_failed}") + f" tries it again; or remove {self.path}",
        )
        return failure if failure.hint else replace(failure, hint=RETRY)

    def _here(self, named: Option) -> str | Option:
        """What to do in place of giving `train` another folder: its folder is this cell."""
        return f"remove {self.path} to train this cell again" if named == Option("out", kind="another") else named

    def fail(self, problem: BaseException) -> CellFailure:
        """Write down why an attempt failed; returns it."""
        said, hint = f"{type(problem).__name__}: {problem}", ""
        if isinstance(problem, TeachOnceError):
            said, hint = problem.message, respelled(problem.hint, self._here)
        failure = CellFailure(
            kind=type(problem).__name__,
            message=said,
            hint=hint,
            ours=isinstance(problem, TeachOnceError),
            time=round(time.time(), 3),
        )
        write_document(self.failure, failure.document())
        return failure

    def step(self) -> int:
        """Of the newest checkpoint; 0 without one."""
        return self.checkpoints.newest_step() or 0


def count_states(states: Iterable[State]) -> dict[str, int]:
    """How many cells are in each state that `CellFolder.state` knows, by the words of JSON documents."""
    counts = Counter(states)
    shown = (*CELL_STATES, *(state for state in LATER_STATES if counts[state]))
    return {cell_word(state): counts[state] for state in shown}


def read_document(file: Path) -> dict[str, Any] | None:
    """A JSON object with our schema; None where there is none, or not a whole one."""
    return read_object(file, SCHEMA)


def write_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document whole, with its digest and null for what is no number; its folder is made.

    Raises:
        IncompleteError, EnvironmentFault: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, (json.dumps(sealed(document), indent=1, allow_nan=False) + "\n").encode())
