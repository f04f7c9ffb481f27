"""A limit of time for what must not wait for anybody; nothing is tested here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def seconds(most: int) -> Iterator[None]:
    """Fail what takes longer, also where it waits in a call of the system."""

    def too_long(signal_number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"nothing came in {most} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(most)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
