"""A program that runs command lines in forks of itself, each killed before a given change of the file system.

It tests nothing. A line of stdin is a job as JSON: `argv`, `cwd`, `log`, and `kill_at` (the number of the change, from
1, or null for none). A line of stdout is what became of it: its exit code and how many changes it made. Libraries
are loaded once, so that 20 kills of a command cost seconds each; tasks run in the process itself (`inline_tasks`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OUTSIDE = ("/dev/null", "/dev/tty", "/proc/", "/sys/")  # nothing is left behind there


class Killer:
    """Counts the changes that this process makes, and kills it before a chosen one.

    Python tells an audit hook of each change before it happens, whichever library asks for it.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if not self._changes(event, arguments):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if mode else bool(flags & WRITES)
            return writes and not isinstance(path, int) and not os.fsdecode(path).startswith(OUTSIDE)
        return event in CHANGES


def run_job(job: dict[str, Any], answers: int) -> None:
    """Run a job in this process, which is a fork and ends with it."""
    from worlds import inline_tasks

    from teachonce.cli.app import run

    os.chdir(job["cwd"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with inline_tasks():
        killer = Killer(job["kill_at"])
        sys.addaudithook(killer)
        code = run(job["argv"])
        os.write(answers, json.dumps({"code": code, "changes": killer.count}).encode() + b"\n")
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Run all jobs, one after the other."""
    import open_clip  # noqa: F401 - loaded before the forks, once for all of them
    import worlds  # noqa: F401

    import teachonce.cli.app  # noqa: F401
    import teachonce.teaching.chunk  # noqa: F401

    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run_job(json.loads(line), answers)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            os.write(answers, json.dumps({"code": -os.WTERMSIG(status), "changes": 0}).encode() + b"\n")


if __name__ == "__main__":
    main()
