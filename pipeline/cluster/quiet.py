"""Dask's own log, kept out of what a person reads: errors of this project say what goes wrong, and what to do.

Nothing is lost: where something ends a run that no error of this project explains, the last errors of Dask are noted.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from teachonce.core.progress import Reporter
from teachonce.errors import TeachOnceError

LOGGERS = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")
KEPT = 3  # errors
MOST_LETTERS = 500
SILENT = logging.CRITICAL + 1


class _LastErrors(logging.Handler):
    """Keeps the last errors in words."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: deque[str] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record: its message, and the exception that it is about."""
        problem = record.exc_info[1] if record.exc_info else None
        text = " ".join(record.getMessage().split()) + (f" ({type(problem).__name__}: {problem})" if problem else "")
        self.lines.append(f"{record.name}: {text[:MOST_LETTERS]}")


@contextmanager
def dask_silenced(reporter: Reporter) -> Iterator[None]:
    """Silence the log of Dask, and of what it stands on, in this process while the block runs.

    Args:
        reporter: receives Dask's last errors where the block is left by an exception that is none of this project.
    """
    kept = _LastErrors()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(handler, handler.level) for logger in loggers for handler in logger.handlers]
    for handler, _ in before:
        handler.setLevel(SILENT)
    for logger in loggers:
        if not any(other is not logger and logger.name.startswith(other.name + ".") for other in loggers):
            logger.addHandler(kept)
    try:
        yield
    except TeachOnceError:
        raise
    except Exception:
        for line in kept.lines:
            reporter.note(f"Dask's log says: {line}")
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(kept)
        for handler, level in before:
            handler.setLevel(level)
