"""The processes of a fault test: `teachonce teach`, a scheduler, nannies and workers, each of which may be killed.

It tests nothing. Whatever is started here is ended by its own number when the `with` block ends.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SHIM = Path(__file__).parent / "shim"
PATIENT = 240.0  # seconds until a wait is given up: far more than anything takes


def eventually(true: Callable[[], bool], what: str, run: psutil.Popen | None = None) -> None:
    """Wait until something is true, as long as `run` goes on.

    Raises:
        AssertionError: it does not become true.
    """
    deadline = time.monotonic() + PATIENT
    while not true():
        assert run is None or run.poll() is None, f"teach ended with {run.returncode} before {what}"
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)


def commits(store: Path) -> int:
    """Chunks of labels in the ledger on disk."""
    folder = store / "ledger/labels/c"
    return sum((entry / "0").is_file() for entry in folder.iterdir()) if folder.is_dir() else 0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Processes:
    """All processes of one case, below one folder, with the same faults."""

    folder: Path
    faults: dict[str, Any] = field(default_factory=dict)
    started: list[psutil.Popen] = field(default_factory=list)
    strays: list[psutil.Process] = field(default_factory=list)
    """Children of processes that were killed; they should end by themselves."""

    def __enter__(self) -> Processes:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *problem: object) -> None:
        for process in self.started:
            end(process)
        for stray in self.strays:
            with suppress(psutil.NoSuchProcess):
                stray.kill()

    @property
    def log(self) -> Path:
        """Where the shim writes."""
        return self.folder / "events.log"

    def events(self, kind: str) -> list[str]:
        """What was logged of one kind."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == kind]

    def start(self, module: str, *arguments: str, out: str, **settings: str) -> psutil.Popen:
        """A Python module as a process; what it prints goes to `out`.out and `out`.err in the folder."""
        environment = (
            os.environ
            | settings
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, (str(SHIM), os.environ.get("PYTHONPATH")))),
                "TEACHONCE_FAULTS": json.dumps({"log": str(self.log)} | self.faults),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            }
        )
        with open(self.folder / f"{out}.out", "w") as stdout, open(self.folder / f"{out}.err", "w") as stderr:
            process = psutil.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        self.started.append(process)
        return process


def family(process: psutil.Process) -> list[psutil.Process]:
    """The processes that a process started, and theirs."""
    with suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The Dask worker processes below a nanny, or below a `teach` with a cluster of its own."""
    workers = []
    for child in family(process):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def end(process: psutil.Popen) -> None:
    """kill -9 of a process and of all that it started."""
    children = family(process)
    for one in (process, *children):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)


@dataclass
class Cluster:
    """A scheduler and workers with nannies, started by hand as on somebody's cluster; any of them may be missing."""

    processes: Processes
    workers: int = 2
    nannies: bool = True
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    scheduler: psutil.Popen | None = None
    hands: list[psutil.Popen] = field(default_factory=list)
    """The nannies, or the workers where they have none."""
    count: int = 0

    @property
    def address(self) -> str:
        """What `--scheduler` is given."""
        return f"tcp://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Start whatever is not running; the workers of a dead scheduler are ended first."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            for hand in self.hands:
                end(hand)
            self.count += 1
            self.scheduler = self.processes.start(
                "distributed.cli.dask_scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--no-dashboard",
                "--no-show",
                out=f"scheduler-{self.count}",
                **self.settings,
            )
        self.hands = [hand for hand in self.hands if hand.poll() is None]
        while len(self.hands) < self.workers:
            self.count += 1
            self.hands.append(self._hand(f"worker-{self.count}"))

    def _hand(self, name: str) -> psutil.Popen:
        return self.processes.start(
            "distributed.cli.dask_worker",
            self.address,
            "--nthreads",
            "2",
            "--name",
            name,
            "--no-dashboard",
            "--preload",
            "teachonce.teaching.chunk",  # imports hold up heartbeats for seconds: done before it joins
            "--memory-limit",
            "0",
            "--nanny" if self.nannies else "--no-nanny",
            "--death-timeout",
            "120",
            out=name,
            **self.settings,
        )
