"""The cells of a grid: every setting that it asks for, times every seed, each with a whole training config.

This module opens no store: `needs` finds out what a cell needs of a store.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachonce.data.vocabulary import HALVES
from teachonce.errors import DataError, UsageError, did_you_mean
from teachonce.phrases import phrase
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import train_config
from teachonce.runs.grid import DATA, INIT, LABELS, REPEATS, SEED, SPLIT, WORDS, Grid, Values, beside
from teachonce.search.tables import SEEDED, DataKeys, Splits


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid."""

    name: str
    group: str
    """The name without split and seed: all splits and seeds of one setting share it."""
    changes: Mapping[str, Any]
    """What differs from the base, but for split and seed."""
    seed: int
    config: TrainConfig
    data: DataKeys
    """With paths that hold in any working folder."""
    prompts: Path | None
    """Folder of the prompts that the run starts from; None: as the config says."""
    labels: Path | None = None
    """The store that the run is trained from; None: the one of the grid."""
    splits: Splits | None = None
    """How classes are split, with a path that holds in any working folder; None: they are not."""

    @property
    def is_base(self) -> bool:
        """Whether it is the base itself, with some split and seed."""
        return not self.changes


def expand(grid: Grid) -> tuple[Cell, ...]:
    """All cells, in the order of the file: the base first where it is one, the seeds of a setting together.

    Raises:
        UsageError: values that exclude each other, a folder or file that is not there, no cell is left, an exclude that
            matches nothing.
    """
    cells, used = [], set()
    splits = _splits(grid)
    for name, values, repeats in _settings(grid):
        for repeat in repeats:
            cell_values = values | repeat
            matching = [i for i, rule in enumerate(grid.exclude) if _matches(rule, cell_values)]
            used |= set(matching)
            if not matching:
                cells.append(_cell(grid, name, cell_values, splits))
    unused = [i + 1 for i in range(len(grid.exclude)) if i not in used]
    if unused:
        raise UsageError(f"{grid.file}: [[exclude]] {unused[0]}: matches no cell", hint="correct it, or take it out")
    if not cells:
        raise UsageError(f"{grid.file}: no cell is left: [[exclude]] matches all of them")
    _require_one_setting_a_name(grid, cells)
    return tuple(cells)


def _require_one_setting_a_name(grid: Grid, cells: Sequence[Cell]) -> None:
    """Splits and seeds of one name are averaged: they must differ in nothing else."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.group, cell)
        if other.changes != cell.changes:
            raise UsageError(
                f"{grid.file}: two settings are called '{cell.group}': {dict(other.changes)} and {dict(cell.changes)}",
                hint="give the [[cells]] entry another name",
            )


def _settings(grid: Grid) -> Iterator[tuple[str | None, Values, list[Values]]]:
    """Name (None: of its changes), values, and the splits and seeds of every setting."""
    axes = {key: values for key, values in grid.axes.items() if key not in REPEATS}
    repeats = _repeats(grid, {})
    if grid.design == "one-factor":
        yield None, grid.base, repeats
        for key, values in axes.items():
            for value in values:
                if value != grid.base[key]:
                    yield None, grid.base | {key: value}, repeats
    else:
        for chosen in itertools.product(*axes.values()):
            yield None, grid.base | dict(zip(axes, chosen, strict=True)), repeats
    for name, changes in grid.extra.items():
        yield name, grid.base | changes, _repeats(grid, changes)


def _repeats(grid: Grid, changes: Values) -> list[Values]:
    """Every split with every seed of a setting; one that a setting gives by itself is its only one."""
    each = [
        [{key: value} for value in ((changes[key],) if key in changes else grid.axes.get(key, (grid.base[key],)))]
        for key in REPEATS
    ]
    return [split | seed for split, seed in itertools.product(*each)]


def _splits(grid: Grid) -> Splits | None:
    """How classes are split, with a path that holds in any working folder."""
    splits, where = grid.splits, f"{grid.file}: [splits]"
    if splits is None or not splits.classes:
        return splits
    return replace(splits, classes=located(splits.classes, grid.file, f"{where}: classes"))


def _require_split(splits: Splits | None, number: int, where: str) -> None:
    """Refuse a split that nothing declares, and a cell without one where all others have one."""
    if number and splits is None:
        raise UsageError(
            f"{where}: {SPLIT} = {number}, and the grid does not say how classes are split",
            hint="add [splits] with unseen = 0.25, the share of classes that are kept from training",
        )
    if splits is not None and not number:
        raise UsageError(
            f"{where}: the grid has [splits], and the cell is of none",
            hint=f'splits are numbered from 1: set "{SPLIT}" = [1, 2, 3] in [axes]',
        )


def _matches(rule: Mapping[str, tuple[Any, ...]], values: Values) -> bool:
    return all(values[key] in wanted for key, wanted in rule.items())


def _cell(grid: Grid, name: str | None, values: Values, splits: Splits | None) -> Cell:
    changes = {key: value for key, value in values.items() if key not in REPEATS and value != grid.base[key]}
    group = name or " ".join(f"{key}={_shown(value)}" for key, value in changes.items()) or "base"
    repeat = f"split={values[SPLIT]} " if values[SPLIT] else ""
    where = f"{grid.file}: cell '{group} {repeat}{SEED}={values[SEED]}'"
    _require_split(splits, values[SPLIT], where)
    settings = {key: value for key, value in values.items() if not key.startswith(DATA)}
    labels = settings.pop(LABELS)
    prompts = None
    if settings[INIT] not in WORDS:
        prompts = _prompts(settings[INIT], grid.file, where) if settings[INIT] else None
        settings[INIT] = grid.base[INIT] if grid.base[INIT] in WORDS else TrainConfig().prompts.init
    config = train_config(settings, where)
    return Cell(
        name=f"{group} {repeat}{SEED}={config.loop.seed}",
        group=group,
        changes=changes,
        seed=config.loop.seed,
        config=config,
        data=_data(values, grid.file, where),
        prompts=prompts,
        labels=_labels(labels, grid.file, where) if labels else None,
        splits=splits,
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"


def _prompts(name: str, file: Path, where: str) -> Path:
    folder = beside(file, name)
    if not folder.is_dir():
        near = did_you_mean(name, WORDS)
        raise UsageError(
            f"{where}: {INIT}: {folder.absolute()} is not a folder with prompts: {near}",
            hint=phrase("give the {out} folder of `teachonce train`, or of `teachonce import`"),
        )
    return folder.resolve()


def _labels(name: str, file: Path, where: str) -> Path:
    """The store that a cell names, relative to the grid."""
    path = beside(file, name)
    if not path.is_dir():
        near = did_you_mean(name, sorted(item.name for item in file.parent.glob("*.zarr")))
        raise UsageError(
            f"{where}: {LABELS}: there is no label store {path.absolute()}: {near}",
            hint="teachonce teach, relabel or merge makes one; a path is relative to the grid's own folder",
        )
    return path.resolve()


def _data(values: Values, file: Path, where: str) -> DataKeys:
    keys = {key[len(DATA) :]: value for key, value in values.items() if key.startswith(DATA)}
    keys |= {key: values[SEED] for key in SEEDED if keys[key] == SEED}
    for key in ("classes", "vocabulary"):
        if keys[key]:
            keys[key] = located(keys[key], file, f"{where}: {DATA}{key}", HALVES if key == "classes" else ())
    try:
        return DataKeys(**keys)
    except ValueError as problem:
        raise UsageError(f"{where}: [data]: {problem}") from problem


def located(name: str, file: Path, where: str, words: Sequence[str] = ()) -> str:
    """A list of classes that a grid names, by a name that holds in any working folder.

    Args:
        name: a file, relative to the grid; timm:NAME, or one of `words`.
        file: the grid.

    Raises:
        DataError: there is no such file.
    """
    path = beside(file, name)
    if path.is_file():
        return str(path.resolve())
    if name.startswith("timm:") or name in words:
        return name
    raise DataError(
        f"{where}: there is no {path.absolute()}: {did_you_mean(name, (*words, *_files(file.parent)))}",
        hint="a path is relative to the grid's own folder",
    )


def _files(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.suffix in (".tsv", ".txt")) if folder.is_dir() else []
