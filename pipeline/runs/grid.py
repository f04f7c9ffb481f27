"""Read GRID.toml: what to vary around which base, on what to evaluate each cell, by what to choose.

This module only reads and checks, and opens no store and no model; `cells` makes the cells of a grid.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from teachonce.core.documents import read_toml, toml_in
from teachonce.core.strict import decode
from teachonce.errors import UsageError, did_you_mean
from teachonce.recipe.config import TrainConfig, key_types
from teachonce.recipe.config_file import flat, nearest, shipped_config
from teachonce.search.tables import HELD_OUT, SEEDED, Choose, DataKeys, Evaluation, Search, Splits
from teachonce.towers.structures import Init

DATA = "data."
SEED = "seed"
SPLIT = "data.split"
REPEATS = (SPLIT, SEED)
"""Keys that repeat a setting: the cells of one setting differ in these alone, and figures are means over them."""
INIT = "init"
LABELS = "labels"
"""The key of the store that a cell is trained from; empty: the one that the command was given."""
WORDS = typing.get_args(Init)  # values of `init` that are the config's own; anything else is a folder with prompts
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The keys of the file that are no tables of free keys."""

    schema: Literal[1]
    title: str
    question: str = ""
    config: str | None = None
    design: Literal["product", "one-factor"] = "product"
    splits: Splits | None = None
    search: Search | None = None
    evaluate: tuple[Evaluation, ...] = ()
    choose: Choose | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A whole grid. Values are checked one by one here; `cells` checks the values of each cell together."""

    file: Path
    title: str
    question: str
    design: str
    base: Values
    """Every key that may vary: those of the config, `init` a word or a folder, `labels`, and data.*."""
    axes: dict[str, tuple[Any, ...]]
    exclude: tuple[Values, ...]
    """Key -> the values that match, as a tuple."""
    extra: dict[str, Values]
    """Further settings by name."""
    splits: Splits | None
    evaluations: tuple[Evaluation, ...]
    choose: Choose | None
    search: Search | None


def load_grid(file: Path) -> Grid:
    """Read a grid: a file, or a shipped one by its name.

    Raises:
        UsageError: the file or its `config` cannot be read, an unknown table, key or value; says where, and what is
            near.
    """
    file = shipped_config(file)
    data, where = _read(file), str(file)
    tables = {name: data.pop(name, {}) for name in ("base", "axes", "data")}
    lists = {name: data.pop(name, []) for name in ("exclude", "cells")}
    known = [*(f.name for f in dataclasses.fields(_Head)), *tables, *lists]
    for key in data:
        if key not in known:
            raise UsageError(f"{where}: unknown key '{key}': {did_you_mean(key, known)}")
    head = decode(_Head, data, where)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"{where}: {name}: expected a table, found {table!r}")
    stated = _checked(_flat(tables["base"], f"{where}: [base]"), f"{where}: [base]")
    base = _defaults() | _recipe(head.config, file) | stated
    base |= _checked({DATA + key: value for key, value in tables["data"].items()}, f"{where}: [data]")
    axes = {
        key: _axis(key, values, f"{where}: [axes]") for key, values in _flat(tables["axes"], f"{where}: [axes]").items()
    }
    excluded = [
        _exclude(entry, f"{where}: [[exclude]] {i + 1}") for i, entry in enumerate(_tables(lists, "exclude", where))
    ]
    grid = Grid(
        file=file,
        title=head.title,
        question=head.question,
        design=head.design,
        base=base,
        axes=axes,
        exclude=tuple(excluded),
        extra=_extra(_tables(lists, "cells", where), stated, file),
        splits=head.splits,
        evaluations=head.evaluate,
        choose=head.choose,
        search=head.search,
    )
    _check_measures(grid)
    return grid


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_toml(file)
    except OSError as problem:
        raise UsageError(f"cannot read the grid {file}: {problem.strerror or problem}") from problem
    except ValueError as problem:
        raise UsageError(f"{file} is not valid TOML: {problem}") from problem


def _defaults() -> Values:
    data = {DATA + f.name: f.default for f in dataclasses.fields(DataKeys)}
    return TrainConfig().to_dict() | data | {LABELS: ""}


def _recipe(name: str | None, file: Path) -> Values:
    """The keys of the recipe that a grid starts from: a path relative to the grid, or a shipped one."""
    if name is None:
        return {}
    path = beside(file, name)
    if path.is_file():
        return _checked(_flat(_read(path), str(path)), str(path))
    folder = resources.files("teachonce.configs")
    shipped = sorted(item.name for item in folder.iterdir() if item.name.endswith(".toml"))
    wanted = name if name.endswith(".toml") else f"{name}.toml"
    if wanted not in shipped:
        raise UsageError(
            f"{file}: config: there is no {path.absolute()}, and no shipped recipe is called '{name}': "
            f"{did_you_mean(wanted, shipped)}"
        )
    recipe = toml_in((folder / wanted).read_bytes())
    return _checked(_flat(recipe, wanted), wanted)


def beside(file: Path, name: str) -> Path:
    """A path that a file gives, relative to that file."""
    return file.parent / name


def _flat(table: Mapping[str, Any], where: str) -> Values:
    """One level of keys: `data.top_k = ...` is a table in a table to TOML, and `"data.top_k" = ...` is not.

    Keys of the config lose their table: `loss.tail` and `tail` are one axis, and one name of a cell.
    """
    values: Values = {}
    for key, value in flat(table, where).items():
        if key == DATA[:-1] and isinstance(value, Mapping):
            values |= {DATA + name: item for name, item in value.items()}
        else:
            values[key] = value
    return values


def _checked(values: Values, where: str) -> Values:
    return {key: check_value(key, value, where) for key, value in values.items()}


def check_value(key: str, value: Any, where: str) -> Any:
    """One value of one key, as cells hold it.

    Raises:
        UsageError: an unknown key, a wrong type, a value that is not allowed; names the nearest.
    """
    if key.startswith(DATA):
        name = key[len(DATA) :]
        if name == "template" and isinstance(value, str):
            value = [value] if value else []
        return _one(typing.get_type_hints(DataKeys), name, value, where, DATA)
    if key == INIT:
        if not isinstance(value, str):
            raise UsageError(f"{where}: {INIT}: expected one of {', '.join(WORDS)} or a folder, found {value!r}")
        return value
    if key == LABELS:
        if not isinstance(value, str):
            raise UsageError(f"{where}: {LABELS}: expected the path of a label store, found {value!r}")
        return value
    return _one(key_types(), key, value, where, "")


def _one(hints: Mapping[str, Any], name: str, value: Any, where: str, prefix: str) -> Any:
    if name not in hints:
        data = [DATA + f.name for f in dataclasses.fields(DataKeys)]
        near = did_you_mean(prefix + name, [*key_types(), *data]) if prefix else nearest(name, data)
        raise UsageError(f"{where}: unknown key '{prefix}{name}': {near}")
    if name in SEEDED:
        if value != SEED and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(f'{where}: {prefix}{name}: expected a whole number or "{SEED}", found {value!r}')
        return value
    alone = dataclasses.make_dataclass("alone", [(name, hints[name])])
    return getattr(decode(alone, {name: value}, where), name)


def _axis(key: str, values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise UsageError(f"{where}: {key}: expected a list with at least one value, found {values!r}")
    checked = tuple(check_value(key, value, where) for value in values)
    for number, value in enumerate(checked):
        if value in checked[:number]:
            raise UsageError(f"{where}: {key}: the value {value!r} comes twice")
    return checked


def _tables(lists: Mapping[str, Any], name: str, where: str) -> list[Values]:
    entries = lists[name]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise UsageError(f"{where}: {name}: expected [[{name}]] tables, found {entries!r}")
    return [_flat(entry, f"{where}: [[{name}]] {i}") for i, entry in enumerate(entries, 1)]


def _exclude(entry: Values, where: str) -> Values:
    if not entry:
        raise UsageError(f"{where}: is empty, and would leave out every cell")
    listed = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
    return {key: tuple(check_value(key, item, where) for item in values) for key, values in listed.items()}


def _extra(entries: list[Values], stated: Values, file: Path) -> dict[str, Values]:
    """Further settings by name.

    Args:
        stated: the keys of [base]. An entry with a recipe of its own has that one's keys in place of those of the
            grid's recipe; what [base] states holds for it as well, but for the seed.
    """
    settings: dict[str, Values] = {}
    for number, entry in enumerate(entries, 1):
        place = f"{file}: [[cells]] {number}"
        name = entry.pop("name", None)
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{place}: the key 'name' is missing")
        if name in settings:
            raise UsageError(f"{place}: the name '{name}' comes twice")
        if not entry:
            raise UsageError(f"{place}: '{name}' changes nothing: it would be the base")
        recipe = entry.pop("config", None)
        settings[name] = _checked(entry, place)
        if recipe is not None:
            if not isinstance(recipe, str):
                raise UsageError(f"{place}: config: expected the name or the file of a recipe, found {recipe!r}")
            whole = TrainConfig().to_dict() | _recipe(recipe, file) | stated
            settings[name] = {key: value for key, value in whole.items() if key != SEED} | settings[name]
    return settings


def _check_measures(grid: Grid) -> None:
    names = [evaluation.name for evaluation in grid.evaluations]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f"{grid.file}: [[evaluate]]: the name '{name}' comes twice")
    late = [evaluation.name for evaluation in grid.evaluations if evaluation.only == "chosen"]
    if late and grid.choose is None:
        raise UsageError(f"{grid.file}: [[evaluate]] {late[0]}: only = 'chosen', and there is no [choose]")
    known = [HELD_OUT, *(name for name in names if name not in late)]
    if grid.search is not None and grid.choose is None:
        raise UsageError(
            f"{grid.file}: [search] compares settings by [choose], and there is none",
            hint="add [choose] with by = NAME or weights = {NAME = 1, ...}",
        )
    for name in grid.choose.named if grid.choose else ():
        if name in late:
            raise UsageError(f"{grid.file}: [choose]: '{name}' is evaluated for chosen cells only: it cannot choose")
        if name not in known:
            raise UsageError(f"{grid.file}: [choose]: unknown measure '{name}': {did_you_mean(name, known)}")
