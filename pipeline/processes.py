"""Which process did something, and whether it still lives: what locks and logs keep of it.

It ends no process and asks nothing about other machines.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

CLOCK_SLACK_S = 2.0  # two readings of one process's start may differ by so much


@dataclass(frozen=True)
class ProcessMark:
    """A process that a later reader can tell from another with the same number."""

    host: str
    pid: int
    started: float
    """When it began, in seconds since the machine did: a pid alone may have been given to another process, and the
    wall clock may jump."""


def this_process() -> ProcessMark:
    """The mark of the process that asks."""
    return ProcessMark(socket.gethostname(), os.getpid(), process_start(os.getpid()))


def lives(mark: ProcessMark) -> bool | None:
    """Whether it still runs; None where that cannot be known: it belongs to another machine."""
    if mark.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(mark.pid)
        # A zombie has ended; in a container nobody may ever reap it.
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process_start(mark.pid) - mark.started) <= CLOCK_SLACK_S
    except psutil.NoSuchProcess:
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
