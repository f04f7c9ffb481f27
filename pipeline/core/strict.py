"""Turn parsed TOML or JSON into frozen dataclasses, refusing every key, type and value that is not declared.

It does not read files and knows no particular config: `config` and `manifests` declare what is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from teachonce.errors import UsageError, did_you_mean

T = TypeVar("T")


def decode(
    kind: type[T], data: Mapping[str, Any], where: str, error: type[UsageError] | Any = UsageError, hint: str = ""
) -> T:
    """Build the dataclass `kind` from `data`.

    Args:
        kind: a dataclass; fields may be str, int, float, bool, Literal, `X | None`, tuple[X, ...],
            dict[str, X] or another dataclass.
        data: the parsed table.
        where: file and section, for messages.
        error: the error class to raise.
        hint: what whoever wrote the table can do next.

    Raises:
        error: an unknown key (with the nearest known one), a missing key, a wrong type, a value not allowed.
    """
    if hint:
        error = functools.partial(error, hint=hint)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise error(f"{where}: unknown key '{key}': {did_you_mean(key, fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}: {name}", error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{where}: the key '{name}' is missing")
    try:
        return kind(**values)
    except ValueError as problem:  # raised by __post_init__, which checks ranges
        raise error(f"{where}: {problem}") from problem


def decode_known(kind: type[T], data: Mapping[str, Any], where: str, error: type[UsageError] | Any = UsageError) -> T:
    """Build the dataclass `kind` from a document that another version may have written.

    Keys that `kind` does not have are passed over, and fields with a default may be missing; all else as `decode`.

    Raises:
        error: a missing key, a wrong type, a value not allowed.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return decode(kind, {key: value for key, value in data.items() if key in known}, where, error)


def toml_value(text: str) -> Any:
    """What `text` means on the right side of a line of TOML; a bare word, or what is no value, is a string."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return found["value"] if len(found) == 1 else text.strip()  # several: the text held further lines


def _value(hint: Any, value: Any, where: str, error: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _choice(args, value, where, error)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        return _value(inner[0], value, where, error)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise error(f"{where}: expected a list, found {_kind(value)} {value!r}")
        return tuple(_value(args[0], item, f"{where}[{i}]", error) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected a table, found {_kind(value)} {value!r}")
        return {key: _value(args[1], item, f"{where}.{key}", error) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected a table, found {_kind(value)} {value!r}")
        return decode(typing.cast(Any, hint), value, where, error)
    return _scalar(hint, value, where, error)


def _choice(allowed: tuple[Any, ...], value: Any, where: str, error: Any) -> Any:
    if value in allowed and not isinstance(value, bool):
        return value
    raise error(f"{where}: {value!r} is not allowed: {did_you_mean(str(value), [str(item) for item in allowed])}")


def _scalar(hint: Any, value: Any, where: str, error: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as problem:
            raise error(f"{where}: expected float, found an int beyond all floats") from problem
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise error(f"{where}: expected {hint.__name__}, found {_kind(value)} {value!r}")


def _kind(value: Any) -> str:
    return type(value).__name__
