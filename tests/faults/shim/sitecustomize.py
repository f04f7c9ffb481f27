"""Faults inside the processes of a run: every Python with this folder on its PYTHONPATH loads it before anything else.

What happens stands as JSON in TEACHONCE_FAULTS: `log` (a file that gets a line an event), `pause` (seconds that each
chunk takes longer), `eio` (share, seed) of reads from archives that fail, `clock` (start, seconds a step, hours) that
the wall clock is off, `hold` (chunk, marker file): the first worker that writes this chunk waits to be stopped.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

FAULTS: dict[str, Any] = json.loads(os.environ.get("TEACHONCE_FAULTS", "{}"))
GAP = 2.0  # seconds between two looks at the clock that only a stopped process misses
HELD = 300.0  # nobody waits longer, whatever goes wrong with the test


def log(event: str, detail: object = "") -> None:
    """One line of the log, whole even with many writers."""
    if "log" in FAULTS:
        handle = os.open(FAULTS["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, f"{event} {detail} {os.getpid()} {time.monotonic():.2f}\n".encode())
        os.close(handle)


def failing_reads(share: float, seed: int) -> None:
    """Reads from tar archives fail with EIO, as a pure function of the seed, the place, and how often it was read."""
    real, tries, lock = os.pread, Counter[tuple[str, int]](), threading.Lock()

    def pread(handle: int, size: int, offset: int) -> bytes:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
        if name.endswith(".tar"):
            with lock:
                tries[name, offset] += 1
                count = tries[name, offset]
            draw = hashlib.blake2b(f"{seed}/{name}/{offset}/{count}".encode(), digest_size=8).digest()
            if int.from_bytes(draw, "little") < share * 2**64:
                log("eio", name)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, size, offset)

    os.pread = pread


def jumping_clock(start: float, step: float, hours: list[float]) -> None:
    """The wall clock jumps every `step` seconds, for all processes of this machine at the same instants."""
    real, real_ns, monotonic = time.time, time.time_ns, time.monotonic

    def offset() -> float:
        return 3600 * hours[int(max(0.0, monotonic() - start) / step) % len(hours)]

    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + int(offset() * 10**9)


def counted_tasks(module: Any) -> None:
    """Each start of a chunk is logged, and whether it was computed or found to be there."""
    real = module.run_chunk

    @functools.wraps(real)
    def run_chunk(job: Any, chunk: int, groups: Any) -> Any:
        which = f"{os.path.basename(job.store)}/{chunk}"
        log("start", which)
        time.sleep(FAULTS.get("pause", 0.0))
        report = real(job, chunk, groups)
        log("computed" if report.staging else "skipped", which)
        return report

    module.run_chunk = run_chunk


def held_write(module: Any) -> None:
    """The first to write this chunk waits until it has been stopped and goes on; then it writes other bits."""
    real, (held, marker) = module.LabelStore.write_chunk, FAULTS["hold"]

    @functools.wraps(real)
    def write_chunk(store: Any, group: str, chunk: int, data: Any, staging: Any = None) -> Any:
        if group != "labels" or chunk != held or not _first(marker):
            return real(store, group, chunk, data, staging)
        results: list[Any] = []

        def write_late() -> None:
            began = before = time.monotonic()
            while (now := time.monotonic()) - before < GAP and now - began < HELD:
                before = now
                time.sleep(0.02)
            try:
                results.append(real(store, group, chunk, data | {"top_log_prob": data["top_log_prob"] - 1}, staging))
                log("late", chunk)
            except Exception as problem:  # noqa: BLE001 - the test is told
                log("late-failed", type(problem).__name__)

        # Dask ends a worker that was given up without waiting for its tasks; here the late write must go through. What
        # was registered last is called first: before Python shuts down the thread pools that Zarr writes with.
        thread = threading.Thread(target=write_late)
        threading._register_atexit(thread.join)
        thread.start()
        thread.join()
        return results[0]

    module.LabelStore.write_chunk = write_chunk


def _first(marker: str) -> bool:
    """Whether nobody made this file before; it then holds the number of this process."""
    try:
        with open(marker, "x") as file:
            file.write(f"{os.getpid()}\n")
    except FileExistsError:
        return False
    return True


class Patcher(importlib.abc.MetaPathFinder):
    """Changes a module right after it was loaded."""

    def __init__(self, wanted: dict[str, Callable[[Any], None]]) -> None:
        self.wanted = wanted

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module's own spec, with the change behind its loading."""
        change = self.wanted.pop(name, None)
        spec = importlib.util.find_spec(name) if change else None
        if spec is None or spec.loader is None or change is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


if "eio" in FAULTS:
    failing_reads(*FAULTS["eio"])
if "clock" in FAULTS:
    jumping_clock(*FAULTS["clock"])
if FAULTS:
    holding = {"teachonce.labels.store": held_write} if "hold" in FAULTS else {}
    sys.meta_path.insert(0, Patcher({"teachonce.teaching.chunk": counted_tasks} | holding))
