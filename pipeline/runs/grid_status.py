"""Where a grid of `ablate` stands: which cells have ended, run, failed or wait, and how long the rest may take.

This module reads what `ablate` and the runs of its cells leave in their folders; it takes no lock and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from teachonce.core.documents import number, read_events
from teachonce.core.locks import lock_path, read_owner
from teachonce.core.status import State, Worker, cell_word, ending, iso, newest, state_of, worker_of
from teachonce.errors import IntegrityError
from teachonce.runs.grid_documents import CellDocument, CellFailure, GridDocument
from teachonce.runs.grid_folder import CellFolder, GridFolder
from teachonce.runs.status import RunStatus, is_run, run_status

BEGUN: tuple[State, ...] = ("finished", "running", "failed", "damaged")  # states of cells on which work was done


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    """One cell that runs, was stopped, failed or is damaged."""

    name: str
    digest: str
    state: str
    """`cell_word` of the cell's state."""
    step: int
    steps: int | None
    steps_per_second: float | None
    seconds_since_sign: float | None
    loss: float | None
    problem: str | None
    """What the last attempt failed with."""
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class GridStatus:
    """A grid of runs."""

    kind: Literal["ablate"] = "ablate"
    path: str
    title: str
    state: State
    process: Worker | None
    """The `ablate` that holds the grid, alive or not; None: the grid is free."""
    cells: dict[str, int]
    """How many are `finished`, `running`, `failed`, `damaged` and `waiting`; `interrupted` ones are also counted among
    the waiting; `dropped` where a search has ended some early."""
    open_cells: tuple[CellStatus, ...]
    """Those that run, were interrupted, failed or are damaged."""
    seconds_per_cell: float | None
    """Mean over the finished ones."""
    last_sign: str | None
    seconds_since_sign: float | None
    seconds_left: float | None
    """With as many cells at once as run now."""
    estimated_end: str | None
    damaged: tuple[str, ...] = ()
    """Files of the grid itself that are not what was written, a sentence each."""


@dataclass(frozen=True)
class _Cell:
    """A cell as it lies on disk."""

    state: State
    about: CellDocument
    run: RunStatus | None = None
    """Of a cell that runs or was stopped."""
    seconds: float | None = None
    """That a finished run took."""
    problem: CellFailure | None = None


def is_grid(folder: Path) -> bool:
    """Whether this is the folder of a grid."""
    return GridFolder(folder).grid.is_file()


def grid_status(folder: Path, now: float) -> GridStatus:
    """Look at a grid.

    Args:
        folder: for which `is_grid` holds.
        now: seconds since 1970.

    Where grid.json is damaged, the cells are those whose folders are there.
    """
    grid = GridFolder(folder)
    document, damaged = _document(grid)
    wanted = document.names(late=False)
    owner = read_owner(grid.grid)
    worker, events = worker_of(owner), read_events(grid.events, live=True)
    at_work = set() if owner is None or (worker and worker.alive is False) else _started(events, owner.token)
    dropped = grid.read_search().dropped if document.search is not None else {}
    cells = [
        _cell(grid.cell(cell.digest), cell, wanted, cell.digest in at_work, now)
        if cell.digest not in dropped
        else _Cell("dropped", cell)
        for cell in document.cells
    ]
    counts, seconds = _counts(cells), _seconds_of_a_cell(events, cells)
    sign = newest([lock_path(grid.grid), grid.events, grid.results, *(cell.events for cell in grid.each_cell())])
    silent = max(0.0, now - sign) if sign is not None else 0.0
    left = _left(cells, seconds)
    state = _state(grid, worker, counts, silent)
    if damaged and state in ("finished", "stopped"):
        state = "damaged"  # which cells there should be, or what came out, is lost
    end = ending(left or 0.0, max(1, counts["running"]) if left is not None else None, now, now, state)
    return GridStatus(
        path=str(folder),
        title=document.title,
        state=state,
        process=worker,
        cells=counts,
        open_cells=tuple(_open_cell(cell) for cell in cells if cell.state not in ("finished", "waiting", "dropped")),
        seconds_per_cell=seconds,
        last_sign=iso(sign) if sign is not None else None,
        seconds_since_sign=round(silent, 1) if sign is not None else None,
        seconds_left=end.seconds_left,
        estimated_end=end.estimated_end,
        damaged=tuple(damaged),
    )


def _document(grid: GridFolder) -> tuple[GridDocument, list[str]]:
    """What the grid is, and a sentence on each of its files that is damaged."""
    damaged = []
    try:
        document = grid.read_grid()
    except IntegrityError as problem:
        document = GridDocument(cells=tuple(grid.cells_there()))
        damaged.append(f"{problem.message}; the cells are those that were begun")
    if grid.results.exists() and grid.read_results() is None:
        damaged.append(f"{grid.results} is not what `ablate` writes")
    return document, damaged


def _started(events: Sequence[Mapping[str, Any]], token: int) -> set[str]:
    """Digests of the cells that workers of this driver began and have not ended."""
    last = {str(e.get("digest")): e["event"] for e in events if e.get("token") == token}
    return {digest for digest, event in last.items() if event == "cell_start"}


def _cell(folder: CellFolder, entry: CellDocument, wanted: Sequence[str], at_work: bool, now: float) -> _Cell:
    if folder.damage() is not None:
        return _Cell("damaged", entry, problem=folder.problem())
    results = folder.read_results()
    if results is not None and not folder.lacking(wanted):
        return _Cell("finished", entry, seconds=results.seconds)
    run = run_status(folder.path, now) if is_run(folder.path) else None
    if at_work:
        return _Cell("running", entry, run)
    problem = folder.problem()
    if problem is not None:
        return _Cell("failed", entry, run, problem=problem)
    return _Cell("waiting" if run is None else "stopped", entry, run)


def _counts(cells: Sequence[_Cell]) -> dict[str, int]:
    """How many cells are in each state, by the words of JSON documents; those that wait include the stopped ones."""
    counts = Counter(cell.state for cell in cells)
    begun = {cell_word(state): counts[state] for state in BEGUN}
    dropped = {"dropped": counts["dropped"]} if counts["dropped"] else {}
    waiting = {"waiting": counts["stopped"] + counts["waiting"], cell_word("stopped"): counts["stopped"]}
    return begun | waiting | dropped


def _seconds_of_a_cell(events: Sequence[Mapping[str, Any]], cells: Sequence[_Cell]) -> float | None:
    """Mean over finished cells: as the grid logged them, else as their runs did."""
    spent: dict[str, float] = {}
    for event in events:  # a cell of a search works in several turns
        if event["event"] in ("cell_rung", "cell_done") and number(event.get("seconds")) is not None:
            spent[str(event.get("digest"))] = spent.get(str(event.get("digest")), 0.0) + event["seconds"]
    done = {str(event.get("digest")) for event in events if event["event"] == "cell_done"}
    logged = [seconds for digest, seconds in spent.items() if digest in done]
    known = logged or [cell.seconds for cell in cells if cell.seconds is not None]
    return mean(known) if known else None


def _left(cells: Sequence[_Cell], seconds: float | None) -> float | None:
    """Seconds of work that are left for one worker; None where neither a finished nor a running cell gives a pace."""
    todo = [cell for cell in cells if cell.state in ("running", "stopped", "waiting")]
    rates = [cell.run.steps_per_second for cell in todo if cell.run is not None and cell.run.steps_per_second]
    if todo and seconds is None and not rates:
        return None
    total = 0.0
    for cell in todo:
        steps = (cell.run.steps if cell.run else None) or cell.about.config.get("steps")
        left = 1.0 if not steps else max(0.0, 1.0 - (cell.run.step if cell.run else 0) / steps)
        total += left * (seconds if seconds is not None else (steps or 0) / mean(rates))
    return total


def _state(grid: GridFolder, worker: Worker | None, counts: Mapping[str, int], silent: float) -> State:
    todo = counts["running"] + counts["waiting"]
    done = worker is None and not todo and grid.read_results() is not None
    return state_of(worker, done, any(counts[state] for state in BEGUN), silent, 0.0)


def _open_cell(cell: _Cell) -> CellStatus:
    run, problem = cell.run, cell.problem
    return CellStatus(
        name=cell.about.name,
        digest=cell.about.digest,
        state=cell_word(cell.state),
        step=run.step if run else 0,
        steps=run.steps if run else None,
        steps_per_second=run.steps_per_second if run else None,
        seconds_since_sign=run.seconds_since_sign if run else None,
        loss=run.losses.get("loss") if run else None,
        problem=problem.message if problem and problem.message else None,
        hint=problem.hint if problem and problem.hint else None,
    )
