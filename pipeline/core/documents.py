"""Text from outside: JSON and TOML, read within limits; characters that would not be seen; cells of CSV files.

Every JSON and every TOML file of this project is read here. A document may be half written, damaged or made to do
harm: beyond the limits below it is refused, so that nothing behind this module meets a number that no file of ours
holds or a nesting that its own recursion would not survive. `read_json`, `read_object` and `read_events` take what is
not whole for what is not there; `json_in` and `toml_in` say what is wrong, and the rooms that own a file say where.

Documents that this package writes carry the digest of all else in them, and logs have one in the document that ends
them: a flipped bit is told from a figure. What early versions wrote carries none and is read as it is.

File names are bytes. Python keeps those that are no UTF-8 in strings with lone surrogates, which no document may hold.
In everything that is written to be read (JSON, CSV, HTML, streams) such a byte stands as `\\xe9`: see `readable`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
import numbers
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachonce.core.digests import canonical_digest
from teachonce.core.outside import open_plain, read_plain, require_plain

MOST_BYTES = 1 << 30  # of a document or a log that is read whole
LINE_BYTES = 1 << 20  # of the first line of a log, where no more is asked

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
            if not 0 <= self.bytes <= require_plain(file):
                return False
            with open_plain(file) as opened:
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


DEPTH = 64
"""Tables and lists in one another; documents of this project have fewer than ten."""
WHOLE = 1 << 64
"""Whole numbers are smaller than this, and larger than its negative."""
JSON_BYTES = 64 << 20
"""Of a JSON document; who reads lists of all images allows more."""
TOML_BYTES = 4 << 20
"""Of a TOML file: a grid of ten thousand cells."""
LATEST = 253402300800.0
"""Seconds from 1970 to the year 10000: no event has a later time."""
STEPS = 1 << 53
"""No event has as many steps; whole numbers below it are exact as floats, too."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")

_FORMULA = re.compile("'*[=+\\-@\\t\\n\uff1d\uff0b\uff0d\uff20]")  # the last four are the wide forms of the first four
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def visible(text: str) -> str:
    """The text with escapes in place of characters that a terminal or a page would obey rather than show.

    Those are the control characters but for line end and tab, marks that turn the direction of writing, line
    separators and tags: `\\x1b`, `\\u202e`. What has been made visible stays as it is.
    """
    return _UNSEEN.sub(_named, readable(text))


def _named(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def csv_bytes(lines: Iterable[Sequence[Any]]) -> bytes:
    """Lines of cells as CSV that a spreadsheet shows and does not run.

    A text that a spreadsheet would take for a formula, because of how it begins, gets an apostrophe before it, which is
    how spreadsheets themselves mark text; `cell_text` takes it off again. Numbers are left as they are.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue().encode()


def cell_text(cell: str) -> str:
    """What `csv_bytes` was given for a cell that was text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return _cell(str(value)) if isinstance(value, (Mapping, list, tuple)) else value
    text = visible(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def json_in(text: str | bytes, most_bytes: int = JSON_BYTES) -> Any:
    """The document in a text, within the limits of this module.

    Args:
        text: UTF-8 where it is bytes.
        most_bytes: the text may be so long.

    Raises:
        ValueError: it is no JSON, not UTF-8, or beyond a limit; says which.
    """
    _require_size(text, most_bytes)
    try:
        text = text if isinstance(text, str) else text.decode()
        document = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _require_shallow(document)
    return document


def toml_in(text: str | bytes) -> dict[str, Any]:
    """The table in a text, within the limits of this module.

    Raises:
        ValueError: it is no TOML, not UTF-8, or beyond a limit; says which.
    """
    _require_size(text, TOML_BYTES)
    try:
        table = tomllib.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _require_shallow(table, scalars=True)
    return table


def read_toml(file: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `toml_in`.
    """
    return toml_in(_bytes_of(file, TOML_BYTES))


def read_json(file: Path) -> Any:
    """The document of a file; None if it is not there or not whole."""
    with suppress(OSError, ValueError):
        return json_in(_bytes_of(file, JSON_BYTES))
    return None


def read_object(file: Path, schema: int | None = None) -> dict[str, Any] | None:
    """The JSON object of a file, of this schema where one is asked for, as it was written; None for anything else."""
    document = read_json(file)
    good = isinstance(document, dict) and (schema is None or document.get("schema") == schema)
    good = good and is_as_written(document)
    return document if good else None


def read_events(file: Path, *, live: bool = False) -> list[dict[str, Any]]:
    """The whole events of a log; as `read_log`, for who does not ask what is damaged."""
    return read_log(file, live=live)[0]


def read_log(file: Path, *, live: bool = False) -> tuple[list[dict[str, Any]], int]:
    """The whole events of a log, and how many other lines it has, but for a last one that a crash may have torn.

    There are none where there is no log yet. Each line is parsed once: logs of long runs are long.

    Args:
        file: one JSON object with an `event` a line.
        live: look at the log of whoever works right now: what cannot be read is not there yet, and an event without
            a time does not count.

    Raises:
        OSError: it cannot be read; not with `live`.
        UnicodeDecodeError: it is no text; not with `live`.
    """
    try:
        text = read_plain(file, MOST_BYTES).decode(errors="replace" if live else "strict")
    except FileNotFoundError:
        return [], 0
    except OSError:
        if live:
            return [], 0
        raise
    lines = [line for line in text.splitlines() if line.strip()]
    events = list(events_in(text))
    torn = bool(lines) and not text.endswith("\n") and (not events or events[-1][0] != lines[-1])
    return [event for _, event in events if not live or "time" in event], len(lines) - len(events) - torn


def begins_with(file: Path, event: str) -> bool:
    """Whether the first line of a log is this event; False where there is no log. The rest is not read."""
    with suppress(OSError), open_plain(file) as log:
        return any(first["event"] == event for _, first in events_in(log.readline(LINE_BYTES).decode(errors="replace")))
    return False


def events_in(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole line of a log, and the event in it: a JSON object whose `event` is a word.

    Where a line has a `time` or a `step`, they are what this project writes: seconds since 1970 before the year 10000,
    and a whole number that is not negative. Readers of logs count on that.
    """
    for line in text.splitlines():
        with suppress(ValueError):
            event = json_in(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str) and _is_in_order(event):
                yield line, event


def _is_in_order(event: Mapping[str, Any]) -> bool:
    time, step = event.get("time", 0.0), event.get("step", 0)
    seconds = number(time)
    good = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < STEPS
    return good and seconds is not None and 0.0 <= seconds < LATEST


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


_TOO_DEEP = f"it has more than {DEPTH} tables and lists in one another"
_TOO_LARGE = "it holds a whole number of more than 64 bits"


def _bytes_of(file: Path, most: int) -> bytes:
    """The content of a file, of which no more is read than the limit."""
    with open_plain(file) as opened:
        content = opened.read(most + 1)
    _require_size(content, most)
    return content


def _require_size(text: str | bytes, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")


def _require_shallow(document: Any, scalars: bool = False) -> None:
    """Refuse a nesting beyond DEPTH, without recursion; with `scalars`, whole numbers beyond WHOLE as well."""
    level = [document]
    for _ in range(DEPTH + 1):
        level = [value for value in level if isinstance(value, (dict, list))]
        if not level:
            return
        level = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        if scalars and any(isinstance(value, int) and not -WHOLE < value < WHOLE for value in level):
            raise ValueError(_TOO_LARGE)
    raise ValueError(_TOO_DEEP)


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= len(str(-WHOLE)) else WHOLE
    if not -WHOLE < value < WHOLE:
        raise ValueError(_TOO_LARGE)
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds a number beyond all floats: {digits[:20]}")
    return value


def _refuse(name: str) -> float:
    """NaN and the infinities, which Python would read and other programs would not."""
    raise ValueError(f"{name} is no JSON")


# One for all texts: to make it anew would cost more than to read a line of a log.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
