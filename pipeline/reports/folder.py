"""Find the runs below a folder, a grid's or any other, and put those that differ only in their seed into groups.

This module reads and sorts runs; `runs.reader` reads each of them, and `tables` counts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teachonce.core.digests import canonical_json
from teachonce.core.documents import fault_of
from teachonce.errors import DataError, IntegrityError
from teachonce.evaluation.result_files import Evaluation, read_evaluation
from teachonce.models.spec import PARTS
from teachonce.phrases import phrase
from teachonce.recipe.config import TrainConfig
from teachonce.reports.standing import dropped, is_choice_of
from teachonce.runs.folder import RunFolder
from teachonce.runs.grid_documents import CellDocument, GridDocument, GridResults, SearchDocument
from teachonce.runs.grid_folder import GridFolder
from teachonce.runs.reader import Run, Unusable, damaged_documents, read_run

AGAIN = "run the same `teachonce ablate` again: it measures this cell anew"
DEPTH = 3  # levels of folders below the given one that are searched for runs
HELD_OUT = "held_out"
SEED = "seed"
EMPTY_HINT = phrase("give the {out} folder of `teachonce train` or of `teachonce ablate`, or a folder above some")
_PARTS = tuple(f"student_{part}" for part in PARTS)
"""The parts of a student's behaviour; runs of early versions know none of them."""
_ORIGINS = {"store": "store_id", "student": "student_digest", "selection": "selection_digest", "start": "start"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One setting: runs that differ in their seed alone."""

    name: str
    changes: Mapping[str, Any]
    """What differs from the base."""
    runs: tuple[Run, ...]
    is_base: bool
    no_effect: tuple[str, ...] = ()
    """What ablate said of keys that change nothing in this setting."""

    def values(self, measure: str) -> dict[int, float]:
        """A figure by draw (split and seed): `held_out`, or the top-1 of an evaluation. Runs of one draw count as their
        mean."""
        by_draw: dict[int, list[float]] = {}
        for run in self.runs:
            value = value_of(run, measure)
            if value is not None:
                by_draw.setdefault(run.draw, []).append(value)
        return {draw: sum(values) / len(values) for draw, values in sorted(by_draw.items())}

    def evaluations(self, name: str) -> list[Evaluation]:
        """The evaluations of all its runs on one set."""
        return [run.evaluations[name] for run in self.runs if name in run.evaluations]

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of its first run."""
        return self.runs[0].config


@dataclass(frozen=True, kw_only=True, eq=False)
class Folder:
    """All that a report is made of."""

    path: Path
    title: str
    question: str
    grid: GridDocument | None
    """None if the folder is none of ablate."""
    groups: tuple[Group, ...]
    """The base first."""
    unusable: tuple[Unusable, ...]
    once: tuple[str, ...] = ()
    """Evaluations that the grid gave to the base and the chosen setting only, after the choice."""
    chosen: str | None = None
    """The setting that the grid chose by its own rule; None where it has more cells or another rule since."""
    choice: Mapping[str, float] = field(default_factory=dict)
    """By which measures, with their shares."""
    short: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Settings that could not be chosen -> the measures in which they miss what the grid asks for at least."""
    earlier: tuple[str, ...] = ()
    """Settings that the grid had chosen before it was changed: what is measured once was measured on them."""

    @property
    def of_each_draw(self) -> set[str]:
        """Evaluations that are of other images for each split and seed."""
        return {evaluation.name for evaluation in self.grid.evaluations if evaluation.stored} if self.grid else set()

    @property
    def runs(self) -> list[Run]:
        """All runs that count."""
        return [run for group in self.groups for run in group.runs]

    @property
    def base(self) -> Group:
        """The setting that all others are compared with."""
        return self.groups[0]

    @property
    def changed_keys(self) -> list[str]:
        """What some setting changes, in order of appearance."""
        return list(dict.fromkeys(key for group in self.groups for key in group.changes))

    def base_value(self, key: str) -> Any:
        """A key's value in the base: of its config, else as the grid says; None where neither has it."""
        return self.base.config.get(key, self.grid.base.get(key) if self.grid else None)

    @property
    def measures(self) -> list[str]:
        """Everything that some run was measured by: held-out samples first, then evaluations in order of appearance."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.evaluations))
        declared = [evaluation.name for evaluation in self.grid.evaluations] if self.grid else []
        names.sort(key=lambda name: declared.index(name) if name in declared else len(declared))
        return ([HELD_OUT] if any(value_of(run, HELD_OUT) is not None for run in self.runs) else []) + names


def value_of(run: Run, measure: str) -> float | None:
    """Top-1 of a run by a measure; None where it was not measured."""
    if measure == HELD_OUT:
        return run.results.held_out_top1
    return run.evaluations[measure].figures["top1"] if measure in run.evaluations else None


def read_folder(path: Path) -> Folder:
    """Read a grid folder, one run, or any folder with runs up to three levels below.

    Raises:
        DataError: it is not there, or holds no finished run; says what was found in its place.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder", hint=EMPTY_HINT)
    files = GridFolder(path)
    try:
        folder = _read_grid(path, files.read_grid()) if files.grid.exists() else _read_runs(path)
    except IntegrityError:
        folder = _read_runs(path)
        broken = Unusable(files.grid.name, "damaged", "it is not what ablate writes; runs are grouped by their configs")
        folder = dataclasses.replace(folder, unusable=(broken, *folder.unusable))
    if not folder.groups:
        reasons = [f"{entry.name}: {entry.kind}, {entry.why}" for entry in folder.unusable[:3]]
        others = f"; of {len(folder.unusable)} others, {'; '.join(reasons)}" if reasons else ""
        raise DataError(f"{path} holds no finished run{others}", hint=EMPTY_HINT)
    return _of_one_set(_without_foreign(folder))


def _without_foreign(folder: Folder) -> Folder:
    """The folder with an entry in `unusable` for each file of a run that is damaged, or not the run's own."""
    unread = [Unusable(run.name, "damaged", why) for run in folder.runs for why in run.damaged]
    unread += [
        Unusable(run.name, "damaged", f"'{name}': {why}")
        for run in folder.runs
        for name, evaluation in run.evaluations.items()
        for why in evaluation.foreign
    ]
    return dataclasses.replace(folder, unusable=(*folder.unusable, *unread))


def _of_one_set(folder: Folder) -> Folder:
    """The folder without evaluations whose images or names differ from those of most runs: they cannot be compared.

    Rows of a store are other ones for each split and seed, so that most runs are those of one draw.
    """
    others: list[tuple[str, str]] = []
    for measure in folder.measures:
        sets: dict[int, Counter[Any]] = {}
        measured = [
            (run, run.draw if measure in folder.of_each_draw else 0)
            for run in folder.runs
            if measure in run.evaluations
        ]
        for run, draw in measured:
            sets.setdefault(draw, Counter())[run.evaluations[measure].image_set] += 1
        usual = {draw: counts.most_common(1)[0][0] for draw, counts in sets.items()}
        others += [(run.name, measure) for run, draw in measured if run.evaluations[measure].image_set != usual[draw]]
    if not others:
        return folder
    not_compared = [
        Unusable(name, "damaged", f"'{measure}' is of other images or names than that of other runs: not compared")
        for name, measure in others
    ]
    groups = [
        dataclasses.replace(
            group,
            runs=tuple(
                dataclasses.replace(
                    run,
                    evaluations={key: value for key, value in run.evaluations.items() if (run.name, key) not in others},
                )
                for run in group.runs
            ),
        )
        for group in folder.groups
    ]
    return dataclasses.replace(folder, groups=tuple(groups), unusable=(*folder.unusable, *not_compared))


def _read_grid(path: Path, grid: GridDocument) -> Folder:
    members: dict[str, list[tuple[CellDocument, Run]]] = {}
    unusable = []
    search = GridFolder(path).read_search() if grid.search is not None else SearchDocument()
    for cell in grid.cells:
        outcome = dropped(cell, search) or _read_cell(path, cell, grid)
        if isinstance(outcome, Run):
            members.setdefault(cell.group, []).append((cell, outcome))
        else:
            unusable.append(outcome)
    groups = [
        Group(
            name=name,
            changes=cells[0][0].changes,
            runs=tuple(run for _, run in cells),
            is_base=cells[0][0].is_base,
            no_effect=cells[0][0].no_effect,
        )
        for name, cells in members.items()
    ]
    if groups and not any(group.is_base for group in groups):  # excluded, or not finished: the nearest takes its place
        nearest = min(groups, key=lambda group: len(group.changes))
        groups = [dataclasses.replace(group, is_base=group is nearest) for group in groups]
    groups.sort(key=lambda group: not group.is_base)
    files = GridFolder(path)
    results = files.read_results() or GridResults()
    holds = all(entry.kind == "dropped" for entry in unusable) and is_choice_of(results, grid, search)
    unusable += [Unusable(path.resolve().name, "damaged", why) for why in _damaged_files(files, grid, results)]
    return Folder(
        path=path,
        title=grid.title or path.name,
        question=grid.question,
        grid=grid,
        groups=tuple(groups),
        unusable=tuple(unusable),
        once=tuple(grid.names(late=True)),
        chosen=results.chosen.group if results.chosen and holds else None,
        choice=grid.choose.measures if grid.choose else {},
        short=results.chosen.short if results.chosen and holds else {},
        earlier=tuple(choice.group for choice in (results.earlier_choices if holds else results.choices())),
    )


def _damaged_files(files: GridFolder, grid: GridDocument, results: GridResults) -> list[str]:
    """A sentence on each file of the grid itself that is not what was written."""
    finals = [files.final(late, cell.digest) for late in grid.names(late=True) for cell in grid.cells]
    damaged = damaged_documents([files.results, *finals], files.path)
    if not results.log.holds(files.events):
        damaged.append(f"{files.events.name} is not what was written")
    if (
        files.results.exists()
        and files.read_results() is None
        and not any(files.results.name in why for why in damaged)
    ):
        damaged.append(f"{files.results.name} is not what `ablate` writes: no choice is shown")
    return damaged


def _read_cell(path: Path, cell: CellDocument, grid: GridDocument) -> Run | Unusable:
    name, files = cell.name, GridFolder(path)
    folder = files.cell(cell.digest).path
    if not re.fullmatch(r"[0-9A-Za-z]+", cell.digest) or not folder.is_dir():
        return Unusable(name, "waiting", "not begun")
    run = read_run(folder, name)
    if isinstance(run, Unusable):
        return run
    run = dataclasses.replace(run, split=cell.split)
    lacking = [evaluation for evaluation in grid.names(late=False) if evaluation not in run.evaluations]
    broken = [why for why in run.damaged for evaluation in lacking if f"/{evaluation}.json " in why]
    if broken:
        return Unusable(name, "damaged", "; ".join(broken), AGAIN)
    if lacking:
        return Unusable(name, "unfinished", f"trained, but not yet evaluated on {', '.join(lacking)}")
    places = {late: files.final(late, cell.digest) for late in grid.names(late=True)}
    finals = {late: read_evaluation(file, late) for late, file in places.items() if file.exists()}
    whole = {late: evaluation for late, evaluation in finals.items() if evaluation is not None}
    damaged = [
        f"{places[late].relative_to(path)} is not what `evaluate` writes: it does not count"
        for late in finals
        if late not in whole and not fault_of(places[late])
    ]
    return dataclasses.replace(run, evaluations={**run.evaluations, **whole}, damaged=(*run.damaged, *damaged))


def run_folders(path: Path) -> list[Path]:
    """All run folders below a folder, in order, and itself if it is one."""
    if _looks_like_run(path):
        return [path]
    return sorted(_search(path, DEPTH))


def _search(path: Path, levels: int) -> Iterator[Path]:
    for item in path.iterdir() if levels else ():
        if item.name.startswith(".") or item.suffix in (".zarr", ".working") or not item.is_dir():
            continue
        if _looks_like_run(item):
            yield item
        elif not item.is_symlink():  # a link to a folder above would be walked for ever
            yield from _search(item, levels - 1)


def _looks_like_run(path: Path) -> bool:
    # The log of a grid is about cells.
    return not GridFolder(path).grid.exists() and RunFolder(path).looks_begun()


def _read_runs(path: Path) -> Folder:
    runs, unusable = [], []
    for folder in run_folders(path):
        outcome = read_run(folder, folder.relative_to(path).as_posix() if folder != path else path.resolve().name)
        if isinstance(outcome, Run):
            runs.append(outcome)
        else:
            unusable.append(outcome)
    title = path.resolve().name
    return Folder(
        path=path, title=title, question="", grid=None, groups=tuple(_grouped(runs)), unusable=tuple(unusable)
    )


def _grouped(runs: Sequence[Run]) -> list[Group]:
    """Settings of runs that no grid names: the base differs least from what most have (of equals, the default)."""
    members: dict[str, list[Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    known = _known_parts(runs)
    for run in runs:
        setting = _setting(run) | _behaviour(run, known)
        key = canonical_json(setting, foreign_as_text=True)
        settings.setdefault(key, setting)
        members.setdefault(key, []).append(run)
    if not members:
        return []
    default = TrainConfig.as_written()
    names = list(dict.fromkeys(name for setting in settings.values() for name in setting))
    common = {
        name: _most_common([setting.get(name) for setting in settings.values()], default.get(name)) for name in names
    }
    distance = {key: sum(setting.get(name) != common[name] for name in common) for key, setting in settings.items()}
    base = min(settings, key=lambda key: (distance[key], -len(members[key])))
    groups: list[Group] = []
    for key, setting in settings.items():
        changes = {name: setting.get(name) for name in common if setting.get(name) != settings[base].get(name)}
        name = " ".join(f"{change}={_shown(value)}" for change, value in changes.items()) or "base"
        if name in [group.name for group in groups]:  # values that differ may look alike
            name += f" ({len(groups) + 1})"
        groups.append(Group(name=name, changes=changes, runs=tuple(members[key]), is_base=key == base))
    return sorted(groups, key=lambda group: not group.is_base)


def _setting(run: Run) -> dict[str, Any]:
    """All that decides a run's result but its seed."""
    config = {key: value for key, value in run.config.items() if key != SEED}
    return config | {name: getattr(run.results, key) for name, key in _ORIGINS.items()}


def _known_parts(runs: Sequence[Run]) -> dict[tuple[str | None, str], set[str]]:
    """What runs say of each part of a student's behaviour, by the digest of its weights."""
    known: dict[tuple[str | None, str], set[str]] = {}
    for run in runs:
        for part in _PARTS:
            if value := getattr(run.results, part):
                known.setdefault((run.results.student_digest, part), set()).add(value)
    return known


def _behaviour(run: Run, known: Mapping[tuple[str | None, str], set[str]]) -> dict[str, str | None]:
    """How the run's student reads text and images: what it says, else what others of its weights say, if they agree."""
    parts: dict[str, str | None] = {}
    for part in _PARTS:
        values = known.get((run.results.student_digest, part), set())
        parts[part] = getattr(run.results, part) or (next(iter(values)) if len(values) == 1 else None)
    return parts


def _most_common(values: Sequence[Any], default: Any) -> Any:
    texts = [json.dumps(value, default=str) for value in values]
    counts, usual = Counter(texts), json.dumps(default, default=str)
    return values[texts.index(max(texts, key=lambda text: (counts[text], text == usual)))]


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}" if re.fullmatch(r"[0-9a-f]{32,}", text) else text
