"""Where the time of a chunk goes, also on an accelerator, whose work ends long after it was asked for.

It prints nothing; the ledger keeps the sums.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def timed_event() -> torch.cuda.Event:
    """A mark in a CUDA stream that knows when it was passed."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class PhaseClock:
    """Seconds by phase. Device phases are timed on the device's own clock and read once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @contextmanager
    def on_host(self, phase: str) -> Iterator[None]:
        """Count the time of the block."""
        began = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - began)

    @contextmanager
    def on_device(self, phase: str) -> Iterator[None]:
        """Count the time that the block's work takes on the device; does not wait for it."""
        if self._device.type != "cuda":
            with self.on_host(phase):
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        first, last = timed_event(), timed_event()
        first.record(stream)
        yield
        last.record(stream)
        self._events.append((phase, first, last))

    def finish(self) -> dict[str, float]:
        """Seconds by phase; waits for the device."""
        for phase, first, last in self._events:
            last.synchronize()
            self.add(phase, first.elapsed_time(last) / 1000)  # of milliseconds
        self._events.clear()
        return dict(self._seconds)
