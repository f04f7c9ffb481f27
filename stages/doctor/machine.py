"""What the machine gives: cores, memory, files, and the disk, file system and locks at a folder."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from teachonce.core.files import atomic_write_bytes
from teachonce.core.locks import exclusive, owned
from teachonce.core.machine import CONTROL_GROUP, allowed_cores, cache_problem, cpu_quota
from teachonce.core.progress import Silent
from teachonce.errors import TeachOnceError
from teachonce.stages.doctor.request import Finding, Standing

GIB = float(1 << 30)
LEAST_MEMORY, ENOUGH_MEMORY = 1.0, 4.0  # GiB: two small models load; a ViT-L/14 with its batches fits
LEAST_DISK, ENOUGH_DISK = 0.2, 10.0  # GiB: a demo; labels of a million images with room for a working set
LEAST_FILES, ENOUGH_FILES = 256, 1024  # open files: a local cluster; many workers and archives
ENOUGH_INODES = 100_000
SLOW_DISK = 30.0  # MB a second
TRIED_BYTES = 32 << 20
BUSY = 0.5  # of the cores: what others leave is less than a run expects


def look(path: Path) -> list[Finding]:
    """Everything that this module tries; a folder for trials below `path` is made and removed."""
    findings = [cores(), memory(), open_files(), space(path)]
    try:
        with tempfile.TemporaryDirectory(prefix=".teachonce-doctor-", dir=path) as trial:
            findings += [speed(Path(trial)), locks(Path(trial))]
    except OSError as problem:
        remedy = "give another folder, or mend who may write there"
        findings.append(_finding("writing", "FAIL", f"{path} cannot be written: {problem.strerror}", remedy))
    problem_of_cache = cache_problem()
    if problem_of_cache is not None:
        remedy = "set TEACHONCE_CACHE to a folder that can be written: evaluations are computed again each time"
        findings.append(_finding("cache", "WARN", problem_of_cache, remedy))
    return findings


def cores() -> Finding:
    """Cores that this process may use, against the threads that it will start and what others use already."""
    allowed, quota = allowed_cores(), cpu_quota()
    load = os.getloadavg()[0]
    free = max(0.0, allowed - load)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    started = int(threads) if threads.isdecimal() else allowed
    text = f"{allowed} cores, {free:.1f} of them free; {started} threads would start"
    if quota is not None and started > max(1.0, quota):
        remedy = f"export OMP_NUM_THREADS={max(1, int(quota))}"
        return _finding("cores", "WARN", f"{text}, and this container may use {quota:g}", remedy)
    if started > allowed:
        return _finding("cores", "WARN", text, f"export OMP_NUM_THREADS={allowed}")
    if free < BUSY * allowed:
        remedy = f"wait for other work to end, or export OMP_NUM_THREADS={max(1, int(free))}"
        return _finding("cores", "WARN", text, remedy)
    return _finding("cores", "OK", text)


def memory() -> Finding:
    """Memory that is free, and what a container leaves of it."""
    free = psutil.virtual_memory().available
    limit, used = _number(CONTROL_GROUP / "memory.max"), _number(CONTROL_GROUP / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    remedy = "end other programs, or use fewer workers and smaller batches (batch_size)"
    text = f"{free / GIB:.1f} GiB free"
    return _finding("memory", _standing(free / GIB, LEAST_MEMORY, ENOUGH_MEMORY), text, remedy)


def open_files() -> Finding:
    """How many files one process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = ENOUGH_FILES if soft == resource.RLIM_INFINITY else soft
    more = ENOUGH_FILES if hard == resource.RLIM_INFINITY else max(soft, min(hard, 65536))
    standing = _standing(soft, LEAST_FILES, ENOUGH_FILES)
    return _finding("open files", standing, f"{soft} a process", f"ulimit -n {more}")


def space(path: Path) -> Finding:
    """Free bytes and names at a folder."""
    free, names = shutil.disk_usage(path).free / GIB, os.statvfs(path)
    remedy = "free some space, or give another folder; `teachonce plan` says what a run will take"
    if names.f_files > 0 and names.f_favail < ENOUGH_INODES:
        return _finding("disk", "WARN", f"{free:.1f} GiB, but only {names.f_favail} more files at {path}", remedy)
    return _finding("disk", _standing(free, LEAST_DISK, ENOUGH_DISK), f"{free:.1f} GiB free at {path}", remedy)


def speed(folder: Path) -> Finding:
    """Megabytes a second that reach the disk in one file, as chunks of a store do."""
    data = os.urandom(1 << 20) * (TRIED_BYTES >> 20)
    file = folder / "speed"
    try:
        began = time.monotonic()
        atomic_write_bytes(file, data)
        rate = TRIED_BYTES / 1e6 / max(1e-6, time.monotonic() - began)
        if file.read_bytes() != data:
            return _finding(
                "disk speed", "FAIL", "what was written was not read back", "use another disk: this one errs"
            )
    except (OSError, TeachOnceError) as problem:
        return _finding("disk speed", "FAIL", str(problem), "free some space, or give another folder")
    finally:
        file.unlink(missing_ok=True)
    standing: Standing = "OK" if rate >= SLOW_DISK else "WARN"
    return _finding("disk speed", standing, f"{rate:.0f} MB/s", "teach to a local disk, and copy the finished store")


def locks(folder: Path) -> Finding:
    """Whether the file system keeps two processes apart: locks on files, and links that fail where a name is taken."""
    remedy = "keep stores and runs on a file system with locks and links, and never start two runs at one folder"
    try:
        with exclusive(folder / "lock", create=True), exclusive(folder / "lock", wait=False) as second:
            held = second is None
        with owned(folder / "store.zarr", Silent()):
            pass
    except (OSError, TeachOnceError) as problem:
        return _finding("locks", "FAIL", f"a lock cannot be made: {problem}", remedy)
    if not held:
        return _finding("locks", "WARN", "this file system has no locks: nothing keeps two runs apart", remedy)
    return _finding("locks", "OK", "two processes are kept apart")


def _standing(value: float, least: float, enough: float) -> Standing:
    return "FAIL" if value < least else "WARN" if value < enough else "OK"


def _finding(what: str, standing: Standing, text: str, remedy: str = "") -> Finding:
    return Finding(what=what, standing=standing, found=text, remedy="" if standing == "OK" else remedy)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit is the word `max`
        return None
