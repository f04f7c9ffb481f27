"""The checks of a grid before anything runs: its files, the store, the student and the config of each cell.

It loads the student and opens the store and the evaluation sets; it writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teachonce.core.digests import SHORT, canonical_digest
from teachonce.core.progress import Reporter
from teachonce.core.status import State
from teachonce.data.vocabulary import HALVES
from teachonce.errors import DataError, IncompleteError, TeachOnceError, UsageError
from teachonce.labels.derived import content_id
from teachonce.labels.format import LABELS, student_group
from teachonce.labels.ledger import require_behaviour
from teachonce.labels.store import LabelStore
from teachonce.models.spec import absolute_spec, require_model
from teachonce.phrases import Phrase
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import requirements
from teachonce.runs.cells import Cell, expand, located
from teachonce.runs.grid import HELD_OUT, Evaluation, Grid, beside, load_grid
from teachonce.runs.grid_documents import CellDocument, GridDocument
from teachonce.runs.grid_folder import GridFolder
from teachonce.runs.needs import Need, cell_digest, need_of, student_command
from teachonce.stages.ablate.request import AblateRequest
from teachonce.stages.ablate.sets import open_sets, require_measured_so

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

R = TypeVar("R")
MOST_SHOWN = 5  # a message names at most so many cells that cannot run
LONGEST = 32  # names on which a cell's prompts are tried


@dataclass(frozen=True, eq=False)
class Planned:
    """A cell that can run."""

    cell: Cell
    need: Need
    digest: str
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
            is_base=cell.is_base,
            config=cell.config.to_dict(),
            data=cell.data,
            prompts=None if cell.prompts is None else str(cell.prompts),
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
            evaluations=self.evaluations,
            choose=grid.choose,
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
    grid = load_grid(request.grid)
    cells = expand(grid)
    folder = GridFolder(request.out.absolute())
    folder.stored()
    store = LabelStore.open(request.labels)
    missing = store.layout.chunks - len(store.committed(LABELS))
    if missing:
        raise IncompleteError(
            f"{store.path}: {missing} of {store.layout.chunks} chunks are not committed",
            hint=f"run the same `{store.maker}` again to complete the store",
        )
    needs = _checked(cells, lambda cell: _need(cell, store, request, grid))
    evaluations = tuple(_evaluation(grid, evaluation) for evaluation in grid.evaluations)
    sets = open_sets(evaluations, request.student, request.root, grid.file, reporter)

    # These imports take seconds, so that files are checked first. Dask is imported before the models, because it sets
    # up only the loggers that exist when it is imported.
    from teachonce.cluster.client import threads_of

    threads_of(request.cluster)  # a description that is not understood is refused here
    from teachonce.models.clip import load_clip

    reporter.note(f"loading the student {request.student}")
    cells = _settled(cells, request, folder.stored(), reporter)
    clip = load_clip(request.student)  # on the CPU: a GPU belongs to the workers
    trial = _Trial(store, clip)
    prompts = _checked(cells, trial.start_digest)
    content = content_id(store)
    planned = [
        Planned(cell, need, cell_digest(cell, need, content, clip.digest, start), tuple(cell.config.without_effect()))
        for cell, need, start in zip(cells, needs, prompts, strict=True)
    ]
    student = absolute_spec(request.student)
    prepared = Prepared(grid, folder, store, student, clip, evaluations, _distinct(planned, grid, reporter))
    folder.require_ours(prepared.description())
    require_measured_so(folder, [planned.digest for planned in prepared.cells], evaluations, sets)
    return prepared


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


def _need(cell: Cell, store: LabelStore, request: AblateRequest, grid: Grid) -> Need:
    """What a cell needs of the store.

    Raises:
        UsageError, DataError: the store, the request or the grid cannot serve it.
    """
    from teachonce.stages.train.served import require_images, require_served

    config = cell.config
    require_images(config, request.root)
    if grid.choose and HELD_OUT in grid.choose.measures and not config.loop.held_out:
        raise UsageError(f"the grid chooses by {HELD_OUT}, and held_out is 0", hint="set held_out = 0.1 in [base]")
    need = need_of(cell, store, request.root)
    require_served(config, store, need.held)
    return need


def _evaluation(grid: Grid, evaluation: Evaluation) -> Evaluation:
    """The evaluation with absolute paths, which hold in any working folder."""
    where = f"{grid.file}: [[evaluate]] {evaluation.name}"
    located_keys: dict[str, Any] = {}
    for key in ("classes", "vocabulary", "without"):
        value = getattr(evaluation, key)
        words = (*HALVES, "all") if key == "classes" else ()
        located_keys[key] = None if value is None else located(value, grid.file, f"{where}: {key}", words)
    manifest = beside(grid.file, evaluation.manifest)
    root = None if evaluation.root is None else str(beside(grid.file, evaluation.root).resolve())
    located_keys["manifest"] = str(manifest.resolve()) if manifest.is_file() else evaluation.manifest
    return replace(evaluation, **located_keys, root=root)


class _Trial:
    """Tries every cell's prompts on the student, each kind once."""

    def __init__(self, store: LabelStore, clip: LoadedClip) -> None:
        self._store, self._clip = store, clip
        self._names = sorted(store.vocabulary().names, key=len)[-LONGEST:]
        self._seen: dict[Any, str | None] = {}

    def start_digest(self, cell: Cell) -> str | None:
        """The digest of the prompts that the cell starts from, after they and the config were found to fit the student.

        Raises:
            TeachOnceError: they do not, or the store has no features of the student.
        """
        config = cell.config
        if requirements(config).features:
            self._require_features()
        key = (config.prompts, config.loop.precision, cell.prompts)
        if key not in self._seen:
            self._seen[key] = self._try(config, cell.prompts)
        return self._seen[key]

    def _require_features(self) -> None:
        store, clip = self._store, self._clip
        group = student_group(clip.digest)
        if group in store.groups:
            require_behaviour(store.path, group, store.groups[group].fingerprint, clip.image_behaviour)
            return
        known = [
            str(group.fingerprint["about"].get("student"))
            for name, group in sorted(store.groups.items())
            if name.startswith("students/")
        ]
        raise DataError(
            f"{store.path} holds no image features of this student (weights {clip.digest[:16]}); it holds those of: "
            f"{', '.join(known) or 'none'}",
            hint=student_command(store, clip.spec),
        )

    def _try(self, config: TrainConfig, prompts: Path | None) -> str | None:
        from teachonce.models.prompt_files import load_prompts
        from teachonce.training.student import PromptedStudent

        student = PromptedStudent(config.changed(compile=False), self._clip, self._names)
        if prompts is None:
            return None
        loaded = load_prompts(prompts).bound_to(self._clip)
        for tower, given in (("text", loaded.text), ("image", loaded.image)):
            learner = student.learner(tower)
            if learner is not None and given is not None:
                learner.load_start(given)
            elif (learner is None) != (given is None):
                raise UsageError(
                    f"the prompts in {prompts} are of tower = '{loaded.meta.tower}', and this cell's is "
                    f"'{config.prompts.tower}'",
                    hint=f"set tower = '{loaded.meta.tower}'",
                )
        if loaded.text is not None and loaded.meta.position != config.prompts.position:
            raise UsageError(
                f"the prompts in {prompts} stand {loaded.meta.position} the name, and this cell's "
                f"{config.prompts.position}",
                hint=f"set position = '{loaded.meta.position}'",
            )
        return loaded.tensors_digest


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
    identity = {"config": values, "data": planned.need.identity(), "prompts": str(planned.cell.prompts)}
    return canonical_digest(identity, SHORT)


def states(prepared: Prepared) -> dict[str, State]:
    """The state of every cell, by digest."""
    names = [evaluation.name for evaluation in prepared.always]
    return {planned.digest: prepared.folder.cell(planned.digest).state(names) for planned in prepared.cells}
