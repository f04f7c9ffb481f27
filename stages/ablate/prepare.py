"""The checks of a grid before anything runs: its files, the store, the student and the config of each cell.

It loads the student and opens the store and the evaluation sets; it writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.core.files import is_remote
from teachonce.core.progress import Reporter
from teachonce.core.status import State
from teachonce.data.vocabulary import HALVES
from teachonce.errors import DataError, TeachOnceError, UsageError
from teachonce.evaluation.choice import StoredChoice
from teachonce.labels.derived import content_id
from teachonce.labels.store import LabelStore
from teachonce.models.spec import absolute_spec, require_model
from teachonce.objects.remote import location
from teachonce.phrases import Phrase
from teachonce.recipe.config import TrainConfig
from teachonce.runs.cells import Cell, expand, located
from teachonce.runs.grid import Grid, beside, load_grid
from teachonce.runs.grid_documents import CellDocument, GridDocument
from teachonce.runs.grid_folder import GridFolder
from teachonce.runs.needs import Need, cell_digest, need_of
from teachonce.search.tables import HELD_OUT, Evaluation
from teachonce.stages.ablate.request import AblateRequest
from teachonce.stages.ablate.search import require_rungs, standing
from teachonce.stages.ablate.sets import open_sets, require_measured_so
from teachonce.stages.ablate.stored import WORDS, Facts, StoredFacts, require_features, stored_choices
from teachonce.stages.ablate.stores import Stores
from teachonce.stages.ablate.trial import Trial

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

R = TypeVar("R")
MOST_SHOWN = 5  # a message names at most so many cells that cannot run


@dataclass(frozen=True, eq=False)
class Planned:
    """A cell that can run."""

    cell: Cell
    store: LabelStore
    """What it is trained from."""
    need: Need
    digest: str
    stored: Mapping[str, StoredChoice]
    """What it is measured on, by evaluation; of those only whose images are rows of a store."""
    no_effect: tuple[str, ...]
    """The keys of its config that have no effect, one sentence for each."""

    def description(self) -> CellDocument:
        """The cell as it stands in grid.json and cell.json."""
        cell = self.cell
        return CellDocument(
            digest=self.digest,
            name=cell.name,
            group=cell.group,
            changes=dict(cell.changes),
            seed=cell.seed,
            split=cell.data.split,
            is_base=cell.is_base,
            config=cell.config.to_dict(),
            data=cell.data,
            prompts=None if cell.prompts is None else str(cell.prompts),
            labels=None if cell.labels is None else str(cell.labels),
            content_id=self.need.source,
            no_effect=self.no_effect,
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """A grid of which every cell can run."""

    grid: Grid
    folder: GridFolder
    store: LabelStore
    student: str
    """The student by a name that holds in any working folder."""
    clip: LoadedClip
    evaluations: tuple[Evaluation, ...]
    """The evaluations, with paths that hold in any working folder."""
    cells: tuple[Planned, ...]

    @property
    def always(self) -> tuple[Evaluation, ...]:
        """The evaluations that every cell gets."""
        return tuple(evaluation for evaluation in self.evaluations if not evaluation.only)

    @property
    def late(self) -> tuple[Evaluation, ...]:
        """The evaluations that only the chosen cells and the base get."""
        return tuple(evaluation for evaluation in self.evaluations if evaluation.only)

    @property
    def groups(self) -> dict[str, list[Planned]]:
        """The cells of each setting, in order."""
        by_setting: dict[str, list[Planned]] = {}
        for planned in self.cells:
            by_setting.setdefault(planned.cell.group, []).append(planned)
        return by_setting

    def description(self) -> GridDocument:
        """The grid as it stands in grid.json."""
        grid = self.grid
        return GridDocument(
            title=grid.title,
            question=grid.question,
            design=grid.design,
            grid_digest=canonical_digest({"cells": [planned.digest for planned in self.cells]}, SHORT),
            labels=str(self.store.path),
            store_id=self.store.store_id(),
            content_id=content_id(self.store),
            student=self.student,
            student_digest=self.clip.digest,
            student_behaviour=dict(self.clip.behaviour),
            base=grid.base,
            axes=dict(grid.axes),
            cells=tuple(planned.description() for planned in self.cells),
            splits=next((planned.cell.splits for planned in self.cells), None),
            evaluations=self.evaluations,
            choose=grid.choose,
            search=grid.search,
        )


def prepare(request: AblateRequest, reporter: Reporter) -> Prepared:
    """Read the grid and refuse what cannot run.

    Raises:
        UsageError: the grid says something that is not understood, or a cell's values exclude each other.
        DataError: a data set, a class list, or something that a cell needs of the store is missing; says how to get it.
        IncompleteError: the store is not complete.
        FingerprintError: the folder holds another grid, or prompts belong to another student.
        IntegrityError: prompts were changed.
    """
    require_model(request.student)
    grid, cells = _declared(request.grid)
    folder = GridFolder(request.out.absolute())
    folder.stored()
    stores = Stores(request.labels)
    evaluations = tuple(_evaluation(grid, evaluation) for evaluation in grid.evaluations)
    looks = StoredFacts()
    served = _checked(cells, lambda cell: _served(cell, stores, request, grid, evaluations, looks))
    sets = open_sets(evaluations, request.student, request.root, grid.file, reporter)

    # These imports take seconds, so that files are checked first. Dask is imported before the models, because it sets
    # up only the loggers that exist when it is imported.
    from teachonce.cluster.client import threads_of

    threads_of(request.cluster)  # a description that is not understood is refused here
    from teachonce.models.clip import load_clip

    reporter.note(f"loading the student {request.student}")
    cells = _settled(cells, request, folder.stored(), reporter)
    clip = load_clip(request.student)  # on the CPU: a GPU belongs to the workers
    prompts = _checked(cells, Trial(stores, clip).start_digest)
    require_features((choice for one in served for choice in one.choices.values()), clip)
    planned = [
        Planned(
            cell,
            stores.of(cell),
            one.need,
            cell_digest(cell, one.need, stores.content(cell), clip.digest, start),
            one.choices,
            tuple(cell.config.without_effect()),
        )
        for cell, one, start in zip(cells, served, prompts, strict=True)
    ]
    student = absolute_spec(request.student)
    prepared = Prepared(grid, folder, stores.grid, student, clip, evaluations, _distinct(planned, grid, reporter))
    folder.require_ours(prepared.description())
    facts = {planned.digest: sets | one.facts for planned, one in zip(planned, served, strict=True)}
    require_measured_so(folder, evaluations, facts, () if grid.search is None else grid.search.rungs)
    return prepared


def _declared(file: Path) -> tuple[Grid, tuple[Cell, ...]]:
    grid = load_grid(file)
    cells = expand(grid)
    if grid.search is not None:
        require_rungs(grid.search, cells)
    return grid, cells


def _settled(
    cells: Sequence[Cell], request: AblateRequest, stored: GridDocument | None, reporter: Reporter
) -> tuple[Cell, ...]:
    """The cells with the number format that `auto` becomes: that of an earlier call, else the device's.

    Cells are named by digests of what was computed, so that it is settled here and not on a worker.
    """
    if all(cell.config.loop.precision != "auto" for cell in cells):
        return tuple(cells)
    from teachonce.cluster.client import runs_here
    from teachonce.core.devices import device_facts

    here = runs_here(request.cluster)
    became = "bf16" if here and device_facts(request.device).bf16 else "fp32"
    if not here:
        reporter.note("precision: fp32 where the grid says auto, because what workers have is not known yet")
    earlier = {} if stored is None else {cell.name: cell.config.get("precision") for cell in stored.cells}
    return tuple(
        replace(cell, config=cell.config.changed(precision=earlier.get(cell.name) or became))
        if cell.config.loop.precision == "auto"
        else cell
        for cell in cells
    )


def _checked(cells: Sequence[Cell], check: Callable[[Cell], R]) -> list[R]:
    """What `check` says of every cell.

    Raises:
        TeachOnceError: of the first cell that cannot run; the message names the others too.
    """
    results, problems = [], []
    for cell in cells:
        try:
            results.append(check(cell))
        except TeachOnceError as problem:
            problems.append((cell, problem))
    if problems:
        first = problems[0][1]
        reasons = [f"\n  cell '{cell.name}': " + problem.message for cell, problem in problems[:MOST_SHOWN]]
        shown = Phrase(*reasons)
        more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        others = "; or leave such cells out with [[exclude]]" if len(problems) < len(cells) else ""
        raise first.reworded(
            f"{len(problems)} of {len(cells)} cells cannot run; nothing was started:" + shown + more,
            hint=(first.hint or "change the grid") + others,
        )
    return results


@dataclass(frozen=True, eq=False)
class _Served:
    """What is found out of a cell without a model."""

    need: Need
    choices: dict[str, StoredChoice]
    """What it is measured on, by evaluation; of those only whose images are rows of a store."""
    facts: dict[str, Facts]
    """What the results of these must state."""


def _served(
    cell: Cell,
    stores: Stores,
    request: AblateRequest,
    grid: Grid,
    evaluations: Sequence[Evaluation],
    looks: StoredFacts,
) -> _Served:
    """What a cell needs of the store, and which rows it is measured on.

    Raises:
        UsageError, DataError: the store, the request or the grid cannot serve it.
    """
    need = _need(cell, stores, request, grid)
    choices = stored_choices(evaluations, cell, need, stores)
    named = {evaluation.name: evaluation for evaluation in evaluations}
    return _Served(need, choices, {name: looks.of(named[name], choice) for name, choice in choices.items()})


def _need(cell: Cell, stores: Stores, request: AblateRequest, grid: Grid) -> Need:
    """What a cell needs of its store.

    Raises:
        UsageError, DataError: the store, the request or the grid cannot serve it.
        IncompleteError: its store is not complete.
    """
    from teachonce.stages.train.served import require_images, require_served

    config, store = cell.config, stores.of(cell)
    require_images(config, request.root)
    if grid.choose and HELD_OUT in grid.choose.measures and not config.loop.held_out:
        raise UsageError(f"the grid chooses by {HELD_OUT}, and held_out is 0", hint="set held_out = 0.1 in [base]")
    need = need_of(cell, store, request.root, stores.source(cell))
    require_served(config, store, need.held)
    return need


def _evaluation(grid: Grid, evaluation: Evaluation) -> Evaluation:
    """The evaluation with absolute paths, which hold in any working folder."""
    where = f"{grid.file}: [[evaluate]] {evaluation.name}"
    located_keys: dict[str, Any] = {}
    for key in ("classes", "vocabulary", "without"):
        value = getattr(evaluation, key)
        words = (*HALVES, *WORDS, "all") if key == "classes" else ()
        located_keys[key] = None if value is None else located(value, grid.file, f"{where}: {key}", words)
    if evaluation.store is not None:
        located_keys["store"] = _store_of(evaluation.store, grid.file, where)
    manifest = beside(grid.file, evaluation.manifest)
    root = None if evaluation.root is None else str(beside(grid.file, evaluation.root).resolve())
    located_keys["manifest"] = str(manifest.resolve()) if manifest.is_file() else evaluation.manifest
    return replace(evaluation, **located_keys, root=root)


def _store_of(name: str, file: Path, where: str) -> str:
    """The path of a label store that an evaluation names, relative to the grid or in a bucket."""
    if is_remote(location(name)):
        return name
    path = beside(file, name).resolve()
    if not path.is_dir():
        raise DataError(f"{where}: store: there is no {path}", hint="a path is relative to the grid's own folder")
    return str(path)


def _distinct(planned: Sequence[Planned], grid: Grid, reporter: Reporter) -> tuple[Planned, ...]:
    """The cells without those that are the same run as an earlier one; says what was merged and what makes no
    difference."""
    by_digest: dict[str, Planned] = {}
    names: dict[str, Planned] = {}
    alike: dict[str, Planned] = {}
    for one in planned:
        first = by_digest.setdefault(one.digest, one)
        if first is not one:
            reporter.note(f"cell '{one.cell.name}' is the same run as '{first.cell.name}': it is run once")
            continue
        if names.setdefault(one.cell.name, one) is not one:
            raise UsageError(
                f"{grid.file}: two different cells are called '{one.cell.name}'",
                hint="give the entry of [[cells]] another name",
            )
        twin = alike.setdefault(_effective(one), one)
        if twin is not one:
            reporter.note(
                f"cell '{one.cell.name}' differs from '{twin.cell.name}' only in what has no effect: "
                f"{'; '.join(one.no_effect) or '; '.join(twin.no_effect)}"
            )
    return tuple(by_digest.values())


def _effective(planned: Planned) -> str:
    """What is left of a cell's identity once keys without effect are at their defaults."""
    default, values = TrainConfig().to_dict(), planned.cell.config.to_dict()
    for sentence in planned.no_effect:
        key = sentence.split()[0]
        values[key] = default[key]
    identity = {
        "config": values,
        "data": planned.need.identity(),
        "store": planned.need.source,
        "prompts": str(planned.cell.prompts),
    }
    return canonical_digest(identity, SHORT)


def states(prepared: Prepared) -> dict[str, State]:
    """The state of every cell, by digest."""
    names = [evaluation.name for evaluation in prepared.always]
    dropped = standing(prepared).dropped
    return {
        planned.digest: "dropped" if planned.digest in dropped else prepared.folder.cell(planned.digest).state(names)
        for planned in prepared.cells
    }
