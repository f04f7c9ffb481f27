"""A training config as people write it: a TOML file with tables or without, and `key=value` overrides.

`tail` and `loss.tail` are the same key. What is read becomes one level of keys first, so that each version's files,
grids and run folders are judged alike; what is written has tables, and the source of each key as a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from teachonce.core.documents import read_toml
from teachonce.core.strict import Idle, Source, decode, toml_text, toml_value
from teachonce.errors import UsageError, did_you_mean
from teachonce.phrases import option, phrase
from teachonce.recipe.config import TABLES, TrainConfig, marks, table_of

NEXT = phrase(
    "{KEY=VALUE} changes one key; `teachonce train {print_config}` lists them all, docs/training.md explains them"
)
COMMENTS_AT = 30  # column of the comments in a written config


def load_train_config(file: Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Defaults, then the TOML file or the shipped recipe of that name, then `key=value` overrides.

    Raises:
        UsageError: file missing or not TOML, unknown key, a key that is given twice, wrong type, value out of range.
    """
    values: dict[str, Any] = {}
    where = option("set")
    if file is not None:
        file = shipped_config(file)
        values = flat(_read_toml(file), str(file))
        train_config(values, str(file), NEXT)  # what is wrong in the file is reported as the file's
    for override in overrides:
        key, value = _parse_override(override)
        values[key] = value
    return train_config(values, where, NEXT)


def train_config(given: Mapping[str, Any], where: str, hint: str = "") -> TrainConfig:
    """The config of values with or without tables; what is left out is at its default.

    Args:
        where: file and section, for messages.
        hint: what whoever wrote the values can do next.

    Raises:
        UsageError: an unknown key (with the nearest known one), a wrong type, a value not allowed or out of range,
            values that exclude each other.
    """
    values = flat(given, where, hint)
    for key in values:
        if key not in table_of():
            raise UsageError(where + f": unknown key '{key}': {nearest(key)}", hint=hint)
    tables = {
        name: decode(kind, {key: value for key, value in values.items() if table_of()[key] == name}, where, hint=hint)
        for name, kind in TABLES.items()
    }
    try:
        return TrainConfig(**tables)
    except ValueError as problem:  # values that exclude each other
        raise UsageError(where + f": {problem}", hint=hint) from problem


def flat(given: Mapping[str, Any], where: str, hint: str = "") -> dict[str, Any]:
    """The values without their tables; what is no key and no table of a config stays as it is.

    Raises:
        UsageError: a key is given twice, in its table and without it.
    """
    values: dict[str, Any] = {}
    for name, item in given.items():
        in_table = name in TABLES and isinstance(item, Mapping)
        entries = {f"{name}.{key}": value for key, value in item.items()} if in_table else {name: item}
        for dotted, value in entries.items():
            key = flat_key(dotted)
            if key in values:
                raise UsageError(where + f": the key '{key}' is given twice: as '{key}' and in a table", hint=hint)
            values[key] = value
    return values


def flat_key(key: str) -> str:
    """`loss.tail` -> `tail`; what is no key in a table of a config stays as it is."""
    table, _, name = key.partition(".")
    return name if table_of().get(name) == table else key


def nearest(key: str, others: Iterable[str] = ()) -> str:
    """The end of a message about an unknown key: the nearest that there is, among the config's keys and others."""
    known = table_of()
    name = key.partition(".")[2]
    if name in known:
        return f"did you mean '{known[name]}.{name}'?"
    if key in TABLES:
        return f"it is a table: expected [{key}], or {key}.KEY"
    if (name or key) == "logit_bias":
        return "every loss is a softmax over classes, in which a number added to the logits of all of them cancels"
    return did_you_mean(key if not name else f"{name}", [*known, *others])


def shipped_config(file: Path) -> Path:
    """The file itself, or, where there is none and it is a bare name, the shipped recipe or grid of that name.

    A folder is no file: `ablate study-small --out study-small` is run a second time beside what it wrote.
    """
    if (file.exists() and not file.is_dir()) or len(file.parts) > 1:
        return file
    shipped = Path(str(resources.files("teachonce.configs"))) / f"{file.name.removesuffix('.toml')}.toml"
    return shipped if shipped.is_file() else file


def config_text(config: TrainConfig) -> str:
    """The config as TOML with its tables, every key with the source of its default as a comment."""
    lines: list[str] = []
    table = ""
    for key, value in config.to_dict().items():
        if table_of()[key] != table:
            table = table_of()[key]
            lines += ["", f"[{table}]"]
        lines.append(f"{f'{key} = {toml_text(value)}':<{COMMENTS_AT}}# {_comment(key)}")
    return "\n".join(lines[1:]) + "\n"


def _comment(key: str) -> str:
    """Where the default of a key comes from, and what must hold for the key to do something."""
    source = [mark.text for mark in marks()[key] if isinstance(mark, Source)]
    needs = [f"only with {mark.needs}" for mark in marks()[key] if isinstance(mark, Idle) and mark.needs]
    return "; ".join([*source, *needs])


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return read_toml(file)
    except OSError as problem:
        raise UsageError(
            f"cannot read the config {file}: {problem.strerror or problem}",
            hint=phrase("`teachonce train {print_config} > FILE.toml` writes one"),
        ) from problem
    except ValueError as problem:
        raise UsageError(
            f"{file} is not valid TOML: {problem}",
            hint=phrase("`teachonce train {print_config}` shows how one is written"),
        ) from problem


def _parse_override(override: str) -> tuple[str, Any]:
    """`key=value` where value is written as in TOML; a bare word counts as a string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(option("set") + f" {override}: expected key=value", hint=NEXT)
    key = flat_key(key.strip())
    if key not in table_of():
        raise UsageError(option("set") + f" {override}: unknown key '{key}': {nearest(key)}", hint=NEXT)
    return key, toml_value(text)
