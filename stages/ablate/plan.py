"""The dry run of a grid: its cells, what would be derived for them, and how long the rest may take. Writes nothing."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from teachonce.cluster.description import ClusterSpec, LocalDescription, load_description
from teachonce.core.devices import pick_device
from teachonce.core.documents import read_events
from teachonce.core.machine import default_threads
from teachonce.core.progress import Reporter, Silent
from teachonce.core.status import cell_word
from teachonce.errors import TeachOnceError
from teachonce.labels.selection import Selection, choose, load_selection, save_selection
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip, tune_process
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import requirements
from teachonce.rows import files as working_files
from teachonce.rows.build import RECORDS, make_plan, rows_of_chunk
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import WorkingSet
from teachonce.runs.grid_folder import GridFolder, count_states
from teachonce.stages.ablate.derive import wanted
from teachonce.stages.ablate.prepare import Planned, Prepared, states
from teachonce.stages.ablate.request import AblatePlan, AblateRequest
from teachonce.stages.ablate.search import share_of_steps
from teachonce.training.trainer import Trainer

TIMED_STEPS = 3


@dataclass(frozen=True)
class _Pace:
    """What a step costs."""

    of_group: dict[str, float]
    """Seconds a step, of settings that have finished cells."""
    of_any: float | None
    besides: float
    """Seconds of a cell besides its steps: models, evaluations."""
    said: str


def plan(prepared: Prepared, request: AblateRequest, reporter: Reporter) -> AblatePlan:
    """List the cells and estimate the time.

    Raises:
        DataError, IntegrityError, IncompleteError: the rows that steps are timed on cannot be read.
    """
    now = states(prepared)
    runs = {"unfinished", "failed"} if request.retry_failed else {"unfinished"}
    todo = [planned for planned in prepared.cells if now[planned.digest] in runs]
    workers = _workers(request.cluster)
    selections = _Selections(prepared)
    nothing = _Pace({}, None, 0.0, "nothing is left to run")
    pace = _measured(prepared, request, selections, reporter) if todo else nothing
    total = _seconds(prepared, todo, pace, selections)
    at_once = max(1, min(workers or 1, len(todo)))
    return AblatePlan(
        title=prepared.grid.title,
        cells=count_states(now.values()),
        to_run=len(todo),
        derived=tuple(wanted(todo, prepared.folder)),
        evaluations=tuple(e.name + (" (chosen cells only)" if e.only else "") for e in prepared.evaluations),
        seconds=None if total is None else total / at_once,
        measured=pace.said,
        workers=workers,
        plan=tuple(
            {
                "name": p.cell.name,
                "digest": p.digest,
                "state": cell_word(now[p.digest]),
                "changes": [f"{key} = {value}" for key, value in p.cell.changes.items()],
                "step": prepared.folder.cell(p.digest).step(),
            }
            for p in prepared.cells
        ),
        out=str(request.out),
    )


def _workers(cluster: ClusterSpec) -> int | None:
    if cluster.scheduler is not None:
        return None
    if cluster.file is None:
        return cluster.workers or 1
    description = load_description(cluster.file)
    return description.most_workers if isinstance(description, LocalDescription) else None


class _Selections:
    """The selections of cells, as `ablate` would make them; none of them is kept on the disk."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._made: dict[str, Selection] = {}

    def of(self, planned: Planned) -> Selection | None:
        """The selection of a cell whose store is there; None where the cell uses all of the store."""
        digest, rule = planned.need.selection_digest, planned.need.rule
        if digest is None or rule is None:
            return None
        if digest not in self._made:
            store = planned.store
            with tempfile.TemporaryDirectory() as place:
                file = Path(place) / "selection.json"
                save_selection(file, store, rule, choose(store, rule, Silent()))
                self._made[digest] = load_selection(file, store)
        return self._made[digest]


def _seconds(prepared: Prepared, todo: Sequence[Planned], pace: _Pace, selections: _Selections) -> float | None:
    """Seconds of all cells, one after the other."""
    if not todo:
        return 0.0
    total = 0.0
    for planned in todo:
        step = pace.of_group.get(planned.cell.group, pace.of_any)
        if step is None:
            return None
        steps = _steps(prepared, planned, selections)
        left = max(0, steps - prepared.folder.cell(planned.digest).step())
        total += share_of_steps(prepared.grid.search, steps) * left * step + pace.besides
    return total


def _steps(prepared: Prepared, planned: Planned, selections: _Selections) -> int:
    config, layout = planned.cell.config, planned.store.layout
    if not config.loop.epochs:
        return config.loop.steps
    samples = layout.rows // layout.views
    selection = selections.of(planned) if planned.need.derivation is None else None
    if selection is not None:
        samples = len(selection.samples)
    trained = max(1, round(samples * (1 - config.loop.held_out)))
    return max(1, math.ceil(config.loop.epochs * math.ceil(trained / config.loop.batch_size)))


def _measured(prepared: Prepared, request: AblateRequest, selections: _Selections, reporter: Reporter) -> _Pace:
    """The pace of finished cells where there are any, else that of a few steps of the base."""
    measured: dict[str, list[float]] = {}
    for planned in prepared.cells:
        step = _logged_step(prepared.folder, planned.digest)
        if step is not None:
            measured.setdefault(planned.cell.group, []).append(step)
    if measured:
        groups = {group: median(steps) for group, steps in measured.items()}
        count = sum(map(len, measured.values()))
        return _Pace(
            groups,
            median(groups.values()),
            _besides(prepared.folder),
            f"measured: seconds a step and for evaluations of {count} cells here",
        )
    base = next((p for p in prepared.cells if p.cell.is_base), prepared.cells[0])
    if base.need.derivation is not None:  # steps on the store's own names do not show the time of other names
        return _Pace(
            {},
            None,
            0.0,
            f"not timed: cell '{base.cell.name}' can be timed only once its store is derived "
            f"({base.need.derivation.words()}), that is after the first cell",
        )
    reporter.note(f"timing {TIMED_STEPS} steps of cell '{base.cell.name}' on this machine")
    step = _timed_step(prepared, base, request, selections)
    left_out = "; evaluations are not in it" if prepared.always else ""
    return _Pace({}, step, 0.0, f"timed: {TIMED_STEPS} steps of cell '{base.cell.name}' on this machine{left_out}")


def _logged_step(folder: GridFolder, digest: str) -> float | None:
    """Seconds a step of a run, the median over its log; None where there is nothing to measure."""
    events = [
        e for e in read_events(folder.cell(digest).events) if e["event"] == "step" and {"time", "step"} <= e.keys()
    ]
    paces = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(events)
        if after["step"] > before["step"]
    ]
    return median(paces) if paces else None


def _besides(folder: GridFolder) -> float:
    """Seconds that finished cells took besides training."""
    done = [e for e in folder.log.read("cell_done") if "train_seconds" in e]
    return median(e["seconds"] - e["train_seconds"] for e in done) if done else 0.0


def _timed_step(prepared: Prepared, planned: Planned, request: AblateRequest, selections: _Selections) -> float:
    """Seconds of a step on the first rows that the cell uses, in a folder that is gone afterwards."""
    threads = default_threads(request.cluster.workers or 1)
    # The timed rows are few: a small share of them may hold out no row, and their epoch is not that of the cell.
    config = planned.cell.config.changed(held_out=0.0, epochs=0.0, steps=_steps(prepared, planned, selections))
    tune_process(threads)
    device = pick_device(request.device)
    clip = prepared.clip if device == "cpu" else load_clip(prepared.student, device)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        rows = _some_rows(planned.store, clip.digest, config, selections.of(planned), Path(place))
        stack.callback(rows.close)
        images = None
        if requirements(config).images and request.root is not None:
            images = stack.enter_context(closing(ViewImages(planned.store, request.root, clip, threads)))
        trainer = Trainer(config, clip, rows, images)
        trainer.step(0)  # the first step also compiles and allocates, so that its time does not count
        began = time.monotonic()
        for step in range(1, 1 + TIMED_STEPS):
            trainer.step(step % max(1, trainer.steps))
        return (time.monotonic() - began) / TIMED_STEPS


def _some_rows(
    store: LabelStore, student: str, config: TrainConfig, selection: Selection | None, place: Path
) -> WorkingSet:
    """A working set of the first chunks that are enough for a few steps; `student` is the digest of its weights."""
    needs = requirements(config)
    chosen = make_plan(store, student if needs.features else None, selection, needs.embeddings)
    parts, count = [], 0
    for chunk in range(store.layout.chunks):
        if selection is not None and not np.isin(store.samples(*store.layout.bounds(chunk)), selection.samples).any():
            continue
        parts.append(rows_of_chunk(chosen, chunk))
        count += len(parts[-1][RECORDS])
        if count >= config.loop.batch_size * config.loop.views_per_step * (TIMED_STEPS + 1):
            break
    identity = {"timed": True, "store": store.store_id()}
    digest = working_files.set_digest(identity)
    with working_files.draft(place, digest) as draft:
        for file in parts[0]:
            np.save(draft / file, np.concatenate([part[file] for part in parts]), allow_pickle=False)
        without = sum(int((part[RECORDS]["label"] < 0).sum()) for part in parts)
        working_files.describe(draft, identity, {"store": store.path.name, "rows": count, "without_class": without})
    files = working_files.open_files(place, digest)
    if files is None:
        raise TeachOnceError(f"{place} was written a moment ago and is gone")
    return WorkingSet(chosen, files)
