"""Let a loop finish its step before Ctrl-C or SIGTERM takes effect.

It decides nothing itself: whoever asks `requested` saves what must be saved and then lets the signal through.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Hold back the first SIGINT or SIGTERM; yields a function that says whether one came.

    When the block ends, the signal is sent again to the handler that was there before. A second signal is not held
    back. Outside the main thread nothing is changed, because Python delivers signals only there.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
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


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
