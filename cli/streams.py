"""stdout and stderr as a process gets them: closed, full, slow, in any encoding. None of that may cost the work.

A result is worth waiting for, so stdout waits for its reader, and what fails there is an error. What is said on stderr
is not: where it cannot be written, or nobody reads on, it is lost and the work goes on.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from teachonce.core.documents import SHOWN

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE_S = 5.0
"""So long a reader of stderr may pause before something is lost; what comes later is lost at once until it goes on."""
PIECE = 4096  # bytes that a pipe which is said to be writable takes whole


class Asides(io.FileIO):
    """A file that takes all that is written to it, and loses what does not get through."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._late = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what the reader takes; returns the size of everything."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._is_ready():
                rest = rest[super().write(rest[:PIECE]) or 0 :]
        except OSError:  # the disk is full, the reader has gone: a later write may get through again
            pass
        return size

    def _is_ready(self) -> bool:
        self._late = not select.select([], [self], [], 0.0 if self._late else PATIENCE_S)[1]
        return not self._late


class Results(io.FileIO):
    """A file that waits for its reader, also where somebody has set the pipe to refuse rather than to wait."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some bytes; returns how many."""
        written: int | None = super().write(data)
        while written is None:
            select.select([], [self], [])
            written = super().write(data)
        return written


def prepare() -> None:
    """Make the process's own streams such as this module describes. A letter that an encoding lacks is escaped."""
    _open_closed_streams()
    sys.stdout = _text(sys.stdout, Results(1))
    sys.stderr = _text(sys.stderr, Asides(2))


def _text(stream: TextIO, raw: io.FileIO) -> io.TextIOWrapper:
    """Return a text stream over a file, like the one that Python made, but for letters that cannot be encoded."""
    stream.flush()
    errors = stream.errors if stream.errors not in ("strict", "surrogateescape", "backslashreplace") else SHOWN
    by_line = isinstance(raw, Asides) or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, errors, line_buffering=by_line)


def _open_closed_streams() -> None:
    """Open the null device for each stream that was closed before we began (`>&-`): a file would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() takes the lowest free number, which is that of the closed stream
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
