"""Freed memory goes back to the system, at most once a minute."""

from __future__ import annotations

import subprocess
import sys

import pytest

from teachonce.cluster import worker_memory

HOLES = """
import psutil
from teachonce.cluster.worker_memory import trim_memory
blocks = [bytes(60_000) for _ in range(4_000)]
kept = blocks[::50]  # pieces in use between those that are freed
del blocks
before = psutil.Process().memory_info().rss
assert trim_memory()
print(before - psutil.Process().memory_info().rss)
assert not trim_memory(), "twice in a minute"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_what_lies_free_between_pieces_in_use_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 100e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_memory_is_given_back_at_most_once_in_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(worker_memory, "_last", [0.0])
    monkeypatch.setattr(worker_memory.time, "monotonic", lambda: now[0])
    asked = []
    for seconds in (0, 59, 60, 61, 121):
        now[0] = 100.0 + seconds
        asked.append(worker_memory.trim_memory())
    assert asked == [True, False, True, False, True]
