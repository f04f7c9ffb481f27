"""A small process that cancels a driver's batch jobs when the driver is gone, whatever ended it.

The driver tells it on a pipe which jobs there are. When the driver ends, even by SIGKILL, the system closes the pipe;
the jobs that are left are cancelled then. A driver that ends in order has closed its jobs itself: none is left.
It runs as `python -m teachonce.batch.job_guard PROGRAM [OPTIONS]`, the program being what cancels jobs.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence

BEGUN, ENDED = "+", "-"
"""What begins a line: of a job that was submitted, and of one that is gone."""
CANCEL_SECONDS = 60
END_SECONDS = 5
TRIES, TRY_AGAIN_AFTER = 3, 20.0  # a job that is gone cannot be cancelled, nor one whose batch system is down


class JobGuard:
    """The driver's end of the pipe. The guard's process begins with the first job."""

    def __init__(self, cancel: Sequence[str]) -> None:
        self._cancel = list(cancel)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def begun(self, job: str) -> None:
        """Guard a job from now on."""
        self._tell(BEGUN + job)

    def ended(self, job: str) -> None:
        """Forget a job that is gone."""
        self._tell(ENDED + job)

    def close(self) -> None:
        """End the guard's process; it cancels the jobs that it was not told the end of."""
        with self._lock:
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
                try:
                    self._process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:  # it goes on by itself, also when this process ends
                    threading.Thread(target=self._process.wait, daemon=True).start()
            self._process = None

    def _tell(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                if line.startswith(ENDED):
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "teachonce.batch.job_guard", *self._cancel],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C and a closed terminal are for the driver
                )
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):  # a guard that was killed leaves its work to the workers' own limit
                    self._process.stdin.write(line + "\n")
                    self._process.stdin.flush()


def left_over(lines: Iterable[str]) -> list[str]:
    """The jobs that began and did not end."""
    jobs: dict[str, None] = {}
    for line in lines:
        mark, job = line[:1], line[1:].strip()
        if mark == BEGUN and job:
            jobs[job] = None
        elif mark == ENDED:
            jobs.pop(job, None)
    return list(jobs)


def guard(cancel: Sequence[str]) -> None:
    """Wait for the end of standard input, which is the driver's, then cancel the jobs that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    jobs = left_over(sys.stdin)
    for attempt in range(TRIES):
        if attempt and jobs:
            time.sleep(TRY_AGAIN_AFTER)
        jobs = [job for job in jobs if not _cancelled(cancel, job)]


def _cancelled(cancel: Sequence[str], job: str) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        nothing = subprocess.DEVNULL
        command = [*cancel, job]
        ended = subprocess.run(
            command, stdin=nothing, stdout=nothing, stderr=nothing, timeout=CANCEL_SECONDS, check=False
        )
        return ended.returncode == 0
    return False


if __name__ == "__main__":
    guard(sys.argv[1:])
