"""How long work speaks with whoever waits for it: what it says on its way, and how it hears that it should stop.

A stage tells a `Reporter` what it does; nothing here prints: `cli.console` shows bars on a terminal and heartbeat lines
elsewhere. A loop lets its step end before Ctrl-C, SIGTERM or whoever runs it in a thread stops it, and decides itself
what must be saved until then.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from teachonce.errors import IncompleteError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_THREAD = threading.local()


class Reporter(Protocol):
    """What a stage may say while it works. Calls are cheap; the receiver decides how often to show them."""

    def note(self, text: str) -> None:
        """One line for the person: a decision, a count, a warning."""

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """`done` of `total` `unit`s of the work called `what` are finished; `figures` are shown beside it."""


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """Say nothing."""


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Hold back the first SIGINT or SIGTERM; yields a function that says whether one came.

    When the block ends, the signal is sent again to the handler that was there before. A second signal is not held
    back. Outside the main thread Python delivers no signals: there `stopped_by` says whom to ask.

    Raises:
        IncompleteError: at the end of the block, in a thread that was asked to stop.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        asked: list[bool] = []
        yield lambda: _asked(asked)
        if asked:
            raise IncompleteError("stopped before the end, as was asked", hint="the same command continues it")
        return
    # A signal that is ignored, as nohup and background jobs have it, stays ignored.
    before: dict[int, Any] = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) is not signal.SIG_IGN}

    def catch(number: int, frame: FrameType | None) -> None:
        if caught:
            _restore(before)
            os.kill(os.getpid(), number)
        caught.append(number)

    for number in before:
        signal.signal(number, catch)
    try:
        yield lambda: bool(caught)
    finally:
        _restore(before)
        if caught:
            os.kill(os.getpid(), caught[0])


@contextmanager
def stopped_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Inside, loops of this thread, which is not the main one, end after the step in which `asked` becomes true."""
    _THREAD.asked = asked
    try:
        yield
    finally:
        _THREAD.asked = None


def _asked(came: list[bool]) -> bool:
    question = getattr(_THREAD, "asked", None)
    if not came and question is not None and question():
        came.append(True)
    return bool(came)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
