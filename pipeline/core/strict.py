"""Turn parsed TOML or JSON into frozen dataclasses, refusing every key, type and value that is not declared.

This module reads no files and knows no particular config: the dataclasses of other modules, such as `training.config`
and `data.manifests`, declare what is allowed. A field says more than its type by `Annotated`: the range of its numbers,
where its default comes from, and when it does nothing.

    rate: Annotated[float, Above(0), Source("ours"), idle_unless(optimizer="sgd")] = 0.9
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast

from teachonce.core.documents import toml_in
from teachonce.errors import UsageError, did_you_mean

T = TypeVar("T")
MOST_SHOWN = 100  # characters of a value in a message


class Range(ABC):
    """Which numbers a field may hold; no range holds NaN."""

    @abstractmethod
    def holds(self, value: float) -> bool:
        """Whether the field may have this value."""

    @abstractmethod
    def __str__(self) -> str:
        """What follows "must be" in a message."""


@dataclass(frozen=True)
class Above(Range):
    """Finite and larger than the bound."""

    bound: float

    def holds(self, value: float) -> bool:
        return self.bound < value < float("inf")

    def __str__(self) -> str:
        return f"above {self.bound} and finite"


@dataclass(frozen=True)
class AtLeast(Range):
    """Finite, and the bound or larger."""

    bound: float

    def holds(self, value: float) -> bool:
        return self.bound <= value < float("inf")

    def __str__(self) -> str:
        return f"at least {self.bound} and finite"


@dataclass(frozen=True)
class Below(Range):
    """Smaller than the bound."""

    bound: float
    words: str = ""
    """The bound as people write it; empty: the number."""

    def holds(self, value: float) -> bool:
        return value < self.bound

    def __str__(self) -> str:
        return f"below {self.words or self.bound}"


@dataclass(frozen=True)
class AtMost(Range):
    """The bound or smaller."""

    bound: float

    def holds(self, value: float) -> bool:
        return value <= self.bound

    def __str__(self) -> str:
        return f"at most {self.bound:g}"


@dataclass(frozen=True)
class Between(Range):
    """From the first bound, which is in the range, up to the second, which is not."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high

    def __str__(self) -> str:
        return f"in [{self.low}, {self.high})"


@dataclass(frozen=True)
class Source:
    """Where the default of a field comes from: a paper, or us."""

    text: str


OURS = Source("ours")


@dataclass(frozen=True)
class Later:
    """The field came after files that people keep: what lacks it means its default, which no digest of them has."""


LATER = Later()


@dataclass(frozen=True)
class Idle:
    """When a field does nothing: its value is not read, or changes no result."""

    beside: tuple[str, ...]
    """The fields whose values are the reason."""
    holds: Callable[[Mapping[str, Any]], bool]
    """Whether the values of all fields are such that this one does nothing."""
    only: Any = None
    """The one value of the field that does nothing then; None: whatever it is."""
    needs: str = ""
    """What must hold for the field to do something, where that is a single value."""


def idle(only: Any = None, **values: Any) -> Idle:
    """The field does nothing where the other fields have all of these values."""
    return Idle(tuple(values), lambda fields: all(fields[key] == value for key, value in values.items()), only)


def idle_unless(**value: Any) -> Idle:
    """The field does nothing where the other field has another value than this."""
    ((key, needed),) = value.items()
    return Idle((key,), lambda fields: bool(fields[key] != needed), needs=f"{key} = {toml_text(needed)}")


def marks_of(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Field -> what its `Annotated` says besides its type, for the fields of a dataclass in their order."""
    return _marks_of(cast(Hashable, kind))


@functools.cache
def _marks_of(kind: Any) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: tuple(getattr(hints[name], "__metadata__", ())) for name in names}


def check_ranges(table: Any) -> None:
    """Refuse numbers outside the ranges that the fields of a dataclass declare; None is in every range.

    Raises:
        ValueError: names the field, the range and the value.
    """
    for name, marks in marks_of(type(table)).items():
        value = getattr(table, name)
        for mark in marks:
            is_number = value is not None and not isinstance(value, str)  # a word may stand in a number's place
            if isinstance(mark, Range) and is_number and not mark.holds(value):
                raise ValueError(f"{name} must be {mark}, found {value}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Keys of a config that belong together; numbers are in their ranges."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range."""
        check_ranges(self)


def idle_sentences(
    marks: Mapping[str, Iterable[Any]], values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """One sentence a field that is not at its default and does nothing, in the order of the fields.

    Args:
        marks: as of `marks_of`.
        values: of all fields.
        defaults: likewise.

    Returns:
        Such as "momentum has no effect with optimizer = 'adamw'".
    """
    sentences = []
    for key in values:
        reasons = [
            mark
            for mark in marks[key]
            if isinstance(mark, Idle) and mark.holds(values) and mark.only in (None, values[key])
        ]
        if values[key] != defaults[key] and reasons:
            first = reasons[0]
            what = key if first.only is None else f"{key} = {first.only!r}"
            because = " and ".join(f"{other} = {values[other]!r}" for other in first.beside)
            sentences.append(f"{what} has no effect with {because}")
    return sentences


def decode(
    kind: type[T], data: Mapping[str, Any], where: str, error: type[UsageError] | Any = UsageError, hint: str = ""
) -> T:
    """Build the dataclass `kind` from `data`.

    Args:
        kind: a dataclass; fields may be str, int, float, bool, Literal, `X | None`, `X | Literal`, tuple[X, ...],
            dict[str, X], Any (as it is) or another dataclass.
        data: the parsed table.
        where: file and section, for messages.
        error: the error class to raise.
        hint: what whoever wrote the table can do next.

    Raises:
        error: an unknown key (with the nearest known one), a missing key, a wrong type, a value not allowed.
    """
    if hint:
        error = functools.partial(error, hint=hint)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise error(where + f": unknown key {_shown(key)}: {did_you_mean(key, known)}")
    return _built(kind, data, where, error, decode)


def decode_known(kind: type[T], data: Mapping[str, Any], where: str, error: type[UsageError] | Any = UsageError) -> T:
    """Build the dataclass `kind` from a document that another version may have written.

    Keys that `kind`, or a dataclass in it, does not have are passed over, and fields with a default may be missing; all
    else as `decode`.

    Raises:
        error: a missing key, a wrong type, a value not allowed.
    """
    return _built(kind, data, where, error, decode_known)


def _built(kind: type[T], data: Mapping[str, Any], where: str, error: Any, nested: Any) -> T:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = field.name
        if name in data:
            values[name] = _value(hints[name], data[name], where + f": {name}", error, nested)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(where + f": the key '{name}' is missing")
    try:
        return kind(**values)
    except ValueError as problem:  # raised by __post_init__, which checks ranges
        raise error(where + f": {problem}") from problem


def toml_value(text: str) -> Any:
    """What `text` means on the right side of a line of TOML; a bare word, or what is no value, is a string."""
    try:
        table = toml_in(f"value = {text}")
    except ValueError:
        return text.strip()
    return table["value"] if len(table) == 1 else text.strip()  # several: the text held further lines


def toml_text(value: Any) -> str:
    """A string, number or yes-or-no as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def _value(hint: Any, value: Any, where: str, error: Any, nested: Any) -> Any:
    """The value as its hint asks; `nested` decodes the dataclasses in it."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _choice(args, value, where, error)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        words = [arg for arg in inner if typing.get_origin(arg) is Literal and isinstance(value, str)]
        return _value((words or inner)[0], value, where, error, nested)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise error(where + f": expected a list, found {_kind(value)} {_shown(value)}")
        return tuple(_value(args[0], item, where + f"[{i}]", error, nested) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise error(where + f": expected a table, found {_kind(value)} {_shown(value)}")
        return {key: _value(args[1], item, where + f".{key}", error, nested) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise error(where + f": expected a table, found {_kind(value)} {_shown(value)}")
        return nested(typing.cast(Any, hint), value, where, error)
    return _scalar(hint, value, where, error)


def _choice(allowed: tuple[Any, ...], value: Any, where: str, error: Any) -> Any:
    if value in allowed and not isinstance(value, bool):
        return value
    raise error(
        where + f": {_shown(value)} is not allowed: {did_you_mean(str(value), [str(item) for item in allowed])}"
    )


def _scalar(hint: Any, value: Any, where: str, error: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as problem:
            raise error(where + ": expected float, found an int beyond all floats") from problem
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise error(where + f": expected {hint.__name__}, found {_kind(value)} {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as a message quotes it: the first characters of a long one."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _kind(value: Any) -> str:
    return type(value).__name__
