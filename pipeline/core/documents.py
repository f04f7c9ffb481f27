"""Read JSON that may be half written or damaged: what is not whole is None.

Files that must be there and whole are read by the rooms that own them, which say what is wrong.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_json(file: Path) -> Any:
    """The document of a file; None if it is not there or not whole."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(file: Path, schema: int | None = None) -> dict[str, Any] | None:
    """The JSON object of a file, of this schema where one is asked for; None for anything else."""
    document = read_json(file)
    good = isinstance(document, dict) and (schema is None or document.get("schema") == schema)
    return document if good else None


def read_events(file: Path, *, live: bool = False) -> list[dict[str, Any]]:
    """The whole events of a log, none where there is no log yet; a torn line, as a crash leaves it, is passed over.

    Args:
        file: one JSON object with an `event` a line.
        live: look at the log of whoever works right now: what cannot be read is not there yet, and an event without
            a time does not count.

    Raises:
        OSError: it cannot be read; not with `live`.
        UnicodeDecodeError: it is no text; not with `live`.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace" if live else "strict")
    except FileNotFoundError:
        return []
    except OSError:
        if live:
            return []
        raise
    return [event for _, event in events_in(text) if not live or number(event.get("time")) is not None]


def events_in(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole line of a log, and the event in it."""
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            event = _parsed(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield line, event


def mapping(value: Any) -> Mapping[str, Any]:
    """A table; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    with suppress(OverflowError):  # a whole number beyond all floats
        return float(value) if math.isfinite(value) else None
    return None


def plain(value: Any, spell: Callable[[str], str] = str) -> Any:
    """The value in JSON's own types: paths as text, tuples as lists, NaN and infinities as null.

    Args:
        value: of which the types are changed, at any depth.
        spell: the words for each text, where options that it names are to be spelled.
    """
    if isinstance(value, str):
        return spell(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, spell) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, spell) for item in value]
    if isinstance(value, numbers.Integral):  # NumPy's scalars are registered with `numbers`
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> float:
    """NaN and the infinities, which Python would read and other programs would not."""
    raise ValueError(f"{name} is no JSON")
