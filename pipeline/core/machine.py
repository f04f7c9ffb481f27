"""The machine this process runs on: who runs, how many cores are its share, what is installed, where its caches are.

It imports nothing heavy and reads no data.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import socket
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from teachonce.errors import EnvironmentFault

CACHE_VARIABLE = "TEACHONCE_CACHE"
THREADS_VARIABLE = "OMP_NUM_THREADS"
CONTROL_GROUP = Path("/sys/fs/cgroup")
LOOK_SECONDS = 0.2
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CALM = {WAITING[0]: "PASSIVE"}
"""Threads that have nothing to do sleep instead of waiting actively: where cores are shared, active waiting takes them
from those who work."""

PACKAGES = ("torch", "open_clip_torch", "timm", "torchvision", "pillow", "zarr", "numcodecs", "numpy", "dask")

PACKAGE_OF = {"PIL": "pillow", "open_clip": "open_clip_torch", "yaml": "pyyaml"}
"""Modules whose package has another name."""

CLOCK_SLACK_S = 2.0  # two readings of one process's start may differ by so much


@dataclass(frozen=True)
class ProcessMark:
    """A process that a later reader can tell from another with the same number."""

    host: str
    pid: int
    started: float
    """When it began, in seconds since the machine did: a pid alone may have been given to another process, and the
    wall clock may jump."""
    namespace: str = field(default="", kw_only=True)
    """In which the pid means something: two containers on one machine count their processes from 1 each. Empty in the
    marks of earlier versions, and where the system does not tell."""
    boot: str = field(default="", kw_only=True)
    """Of the machine, anew at each start: names of hosts come twice, and namespaces have the same numbers on all."""


def this_process() -> ProcessMark:
    """The mark of the process that asks."""
    return ProcessMark(
        socket.gethostname(), os.getpid(), process_start(os.getpid()), namespace=_namespace(), boot=_boot()
    )


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def lives(mark: ProcessMark) -> bool | None:
    """Whether the process still runs; None where that cannot be known, because its pid means nothing here: it belongs
    to another machine, or to another container of this one.
    """
    place = (_boot(), _namespace())
    if all(place) and mark.boot and mark.namespace:
        if (mark.boot, mark.namespace) != place:
            return None
    elif mark.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(mark.pid)
        # A zombie has ended; in a container nobody may ever reap it.
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process_start(mark.pid) - mark.started) <= CLOCK_SLACK_S
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two for a number that no process has
        return False


def process_start(pid: int) -> float:
    """When a process began, on a clock that nobody sets: seconds since boot where the system tells, else since 1970.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return float(psutil.Process(pid).create_time())
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)


def package_versions() -> dict[str, str]:
    """Package -> installed version, and Python's own."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES}


def installed_version(package: str) -> str:
    """The version of a package, or the words `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def pip_line(module: str) -> str:
    """The command that installs the package of a module, with the extra of ours that asks for it where one does."""
    try:
        wanted = requires("teachonce") or []
    except PackageNotFoundError:
        wanted = []
    named = [text for text in wanted if _plain_name(text) == _plain_name(PACKAGE_OF.get(module, module))]
    extras = [match[1] for text in named if (match := re.search(r"extra == [\"']([\w-]+)", text))]
    for_users = [extra for extra in extras if extra not in ("bench", "dev", "docs")]
    if not named or (extras and not for_users and len(extras) == len(named)):
        return f"pip install {PACKAGE_OF.get(module, module)}"
    return (
        f"pip install 'teachonce[{for_users[0]}]'" if len(extras) == len(named) else "install teachonce again with pip"
    )


def _plain_name(requirement: str) -> str:
    """The name of a package in one spelling, without the versions behind it."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How many CPU threads a process uses."""

    count: int
    why: str
    """What decided the number, in a few words."""


def default_threads(workers: int) -> int:
    """CPU threads a worker may use: see `choose_threads`."""
    return choose_threads(None, workers).count


def choose_threads(asked: int | None = None, workers: int = 1, heed_variable: bool = True) -> Threads:
    """The number that was asked for, else OMP_NUM_THREADS, else an equal share of the cores that are free.

    What is free is looked at once in a process, so that it uses the same number throughout.

    Args:
        asked: what the person says; None: nothing.
        workers: how many processes share the machine.
        heed_variable: whether the environment was set by a person.
    """
    if asked is not None:
        return Threads(count=asked, why="as asked")
    variable = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()  # a list is of nested levels
    if heed_variable and variable.isdecimal() and int(variable) > 0:
        return Threads(count=int(variable), why=THREADS_VARIABLE)
    cores, quota = allowed_cores(), cpu_quota()
    usable = cores if quota is None else max(1, min(cores, round(quota)))
    busy = busy_cores()
    free = max(1, min(usable, cores - round(busy)))
    why = f"{usable} of {cores} cores may be used" if usable < cores else f"{cores} cores"
    why += f", {busy:.1f} of them are busy" if round(busy) else ""
    why += f", shared by {workers} workers" if workers > 1 else ""
    return Threads(count=max(1, free // workers), why=why)


def allowed_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Cores' worth of time that a container may use; None without such a limit."""
    try:
        share, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        return None if share == "max" else int(share) / int(period)
    except (OSError, ValueError):
        return None


@functools.cache
def busy_cores() -> float:
    """How many of the allowed cores others keep busy, looked at once in a process.

    Both the load of the last minute and a short look must say so: the first alone counts a run that has just ended,
    the second alone a moment's work.
    """
    if not hasattr(os, "getloadavg"):
        return 0.0
    load: float = os.getloadavg()[0]
    if load < 0.5:  # nothing that would cost a thread
        return 0.0
    used = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    ours = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(len(used))
    return min(load, float(sum(used[core] for core in ours if core < len(used))) / 100)


def calm_waiting(shared: bool = False) -> dict[str, str]:
    """Variables with which idle threads sleep, for a process that will import torch; none where a person has set one.

    Sleeping costs a fifth of the time of many short parallel regions on a free machine, and saves two thirds of it on a
    busy one (`benchmarks/waiting.py`).

    Args:
        shared: whether the process's own work shares its cores, as decoding and computing do in a worker; else others
            must have kept a quarter of the cores busy for a minute.
    """
    set_here = {name: os.environ[name] for name in WAITING if name in os.environ}
    calm = shared or os.getloadavg()[0] >= (os.cpu_count() or 1) / 4
    return dict(CALM) if calm and set_here in ({}, CALM) else {}


def cache_folder() -> Path:
    """$TEACHONCE_CACHE, or teachonce below the user's cache folder.

    Raises:
        EnvironmentFault: the user has no home folder: no HOME, and no entry in the system's list of users.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "teachonce"
    try:
        return Path.home() / ".cache" / "teachonce"
    except RuntimeError as problem:
        raise EnvironmentFault(
            "this user has no home folder (no HOME, no entry in the list of users), and so no cache folder",
            hint=f"set {CACHE_VARIABLE} to a folder that can be written",
        ) from problem


def cache_problem() -> str | None:
    """Why nothing can be kept in the cache folder; None where it can."""
    try:
        folder = cache_folder()
    except EnvironmentFault as problem:
        return problem.message
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        return f"{folder}: {problem.strerror}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: it cannot be written"
