"""A Dask scheduler and workers started by hand, as on somebody's cluster, for tests. It tests nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def by_hand(
    folder: Path, port: int, workers: int, options: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Its address, and its processes: the scheduler first, then the workers, which all run in `folder`.

    Args:
        folder: their working folder.
        port: where the scheduler listens.
        workers: how many.
        options: more of them for `dask worker`.
        environment: more variables of the workers.
    """
    address = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
               "--no-dashboard"]  # fmt: skip
    found = os.pathsep.join(filter(None, sys.path))  # this module and what it imports, for the workers
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
             "env": os.environ | {"PYTHONPATH": found} | dict(environment or {})}  # fmt: skip
    processes = [subprocess.Popen(command, **quiet)]
    processes += [
        subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2", "--no-nanny",
                          "--name", f"w-{i}", "--no-dashboard", *options], **quiet)
        for i in range(workers)
    ]  # fmt: skip
    try:
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
