"""Read JSON that may be half written or damaged, and say how what is not text enters documents and streams.

Documents that this package writes carry the digest of all else in them, and logs have one in the document that ends
them: a flipped bit is told from a figure. What early versions wrote carries none and is read as it is.

What is not whole is None. Files that must be there and whole are read by the rooms that own them, which say what is
wrong.

File names are bytes. Python keeps those that are no UTF-8 in strings with lone surrogates, which no document may hold.
In everything that is written to be read (JSON, CSV, HTML, streams) such a byte stands as `\\xe9`: see `readable`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.core.digests import canonical_digest

SEAL = "document_sha256"
"""The key of the digest, over the canonical JSON of all other keys."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document in JSON's own types, with its digest."""
    body = {key: value for key, value in plain(document).items() if key != SEAL}
    return {**body, SEAL: canonical_digest(body)}


def is_as_written(document: Mapping[str, Any]) -> bool:
    """Whether a parsed document still has its digest; true where it carries none."""
    try:
        return SEAL not in document or document[SEAL] == sealed(document)[SEAL]
    except RecursionError:  # nothing that this package writes is so deep
        return False


def fault_of(file: Path) -> str:
    """What is wrong with a document that is there, in words; empty if nothing is, or there is no file."""
    if not file.is_file():
        return ""
    document = read_json(file)
    if not isinstance(document, dict):
        return "is cut short, or no JSON object"
    return "" if is_as_written(document) else "is not what was written: its digest differs"


@dataclass(frozen=True)
class LogSeal:
    """How much of a log was there when the document that ends it was written, and its digest."""

    bytes: int = 0
    sha256: str = ""
    """Empty where an early version wrote the document."""

    @classmethod
    def of(cls, file: Path) -> LogSeal:
        """The seal of a log as it is now; that of an empty one where there is none."""
        data = file.read_bytes() if file.is_file() else b""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def holds(self, file: Path) -> bool:
        """Whether the log still begins with what was there; more may have been appended since."""
        if not self.sha256:
            return True
        try:
            with open(file, "rb") as opened:
                return hashlib.sha256(opened.read(self.bytes)).hexdigest() == self.sha256
        except FileNotFoundError:
            return not self.bytes


SHOWN = "teachonce.shown"
"""A way to encode (`errors=SHOWN`): what the encoding lacks, and bytes of names that are no UTF-8, stand as `\\xe9`."""


_DRAWN = dict(zip("▁▂▃▄▅▆▇█▲▼●", "_.-=+*%#^vo", strict=True))
"""Signs of bars, curves and verdicts, and what stands for them where the encoding lacks them."""


def _as_escapes(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    letters = problem.object[problem.start : problem.end]
    return "".join(map(_escape, letters)), problem.end


def _escape(letter: str) -> str:
    """Show one letter; a lone surrogate of Python's `surrogateescape` stands for one byte."""
    if letter in _DRAWN:
        return _DRAWN[letter]
    is_byte = 0xDC80 <= ord(letter) <= 0xDCFF
    return f"\\x{ord(letter) - 0xDC00:02x}" if is_byte else letter.encode("ascii", "backslashreplace").decode()


codecs.register_error(SHOWN, _as_escapes)


def readable(text: str) -> str:
    """Return the text as every document may hold it: the same text, unless it has bytes that are no UTF-8."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", SHOWN).decode()


def read_json(file: Path) -> Any:
    """The document of a file; None if it is not there or not whole."""
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(file: Path, schema: int | None = None) -> dict[str, Any] | None:
    """The JSON object of a file, of this schema where one is asked for, as it was written; None for anything else."""
    document = read_json(file)
    good = isinstance(document, dict) and (schema is None or document.get("schema") == schema)
    good = good and is_as_written(document)
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
    """The value in JSON's own types: paths as readable text, tuples as lists, NaN and infinities as null.

    Args:
        value: of which the types are changed, at any depth.
        spell: the words for each text, where options that it names are to be spelled.
    """
    if isinstance(value, str):
        return readable(spell(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        return {readable(str(key)): plain(item, spell) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, spell) for item in value]
    if isinstance(value, numbers.Integral):  # NumPy's scalars are registered with `numbers`
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return readable(str(value))


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> float:
    """NaN and the infinities, which Python would read and other programs would not."""
    raise ValueError(f"{name} is no JSON")
