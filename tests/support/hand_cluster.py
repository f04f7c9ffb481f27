"""A Dask scheduler and workers started by hand, as on somebody's cluster, for tests. It tests nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

SBATCH = """
import pathlib, subprocess, sys

folder = pathlib.Path(folder)
script = pathlib.Path(sys.argv[-1]).read_text()
if "#SBATCH -A nobody" in script:
    sys.exit("sbatch: error: Batch job submission failed: Invalid account")
if (folder / "refusal").exists():
    with open(folder / "refused", "a") as tries:
        tries.write("x")
    sys.exit("sbatch: error: Batch job submission failed: " + (folder / "refusal").read_text())
most = int((folder / "most").read_text()) if (folder / "most").exists() else 1000000
number = 1
while True:  # several submit at once
    if number > most:
        sys.exit("sbatch: error: Batch job submission failed: Job violates the job submit limit")
    try:
        job = folder / f"{number}.sh"
        job.open("x").write(script)
        break
    except FileExistsError:
        number += 1
if (folder / "waiting").exists():
    job.with_suffix(".state").write_text("PENDING|" + (folder / "waiting").read_text())
else:
    log = job.with_suffix(".log").open("wb")
    started = subprocess.Popen(["bash", job], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    job.with_suffix(".pid").write_text(str(started.pid))
print(f"Submitted batch job {number}")
"""
SCANCEL = """
import contextlib, os, pathlib, signal, sys

job = pathlib.Path(folder, sys.argv[-1] + ".sh")
state = job.with_suffix(".state")
if not state.exists() or state.read_text().startswith("PENDING"):  # what has ended keeps how it ended
    state.write_text("CANCELLED|None")
if job.with_suffix(".pid").exists():
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(job.with_suffix(".pid").read_text()), signal.SIGKILL)
"""
SQUEUE = """
import pathlib, sys

for number in sys.argv[-1].split(","):
    job = pathlib.Path(folder, number + ".sh")
    state = job.with_suffix(".state")
    if state.exists():
        print(number + "|" + state.read_text())
    elif job.with_suffix(".pid").exists():
        process = pathlib.Path("/proc", job.with_suffix(".pid").read_text(), "stat")
        runs = process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z"
        print(number + ("|RUNNING|None" if runs else "|FAILED|NonZeroExitCode"))
"""
SCONTROL = """
import pathlib, sys

log = pathlib.Path(folder, sys.argv[-1] + ".log")
print(f"JobId={sys.argv[-1]} StdErr={log} StdIn=/dev/null StdOut={log}")
"""

PROGRAMS = (("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE), ("scontrol", SCONTROL))


@contextmanager
def by_hand(
    folder: Path,
    port: int,
    workers: int,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    protocol: str = "tcp",
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Its address, and its processes: the scheduler first, then the workers, which all run in `folder`.

    Args:
        folder: their working folder.
        port: where the scheduler listens.
        workers: how many.
        options: more of them for `dask worker`.
        environment: more variables of the scheduler and the workers.
        protocol: tcp, or tls, whose certificates stand in the environment.
    """
    address = f"{protocol}://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--protocol",
        protocol,
        "--port",
        str(port),
        "--no-dashboard",
    ]
    search_path = os.pathsep.join(filter(None, sys.path))  # this module and what it imports, for the workers
    quiet = {
        "cwd": folder,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"PYTHONPATH": search_path} | dict(environment or {}),
    }
    processes = [subprocess.Popen(command, **quiet)]
    processes += [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "2",
                "--no-nanny",
                "--name",
                f"w-{i}",
                "--no-dashboard",
                *options,
            ],
            **quiet,
        )
        for i in range(workers)
    ]
    try:
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def stand_in_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Variables under which `sbatch` starts a job script right here, and `scancel` ends it: N.sh, N.pid, N.log.

    It refuses the account `nobody`, as SLURM refuses accounts that it does not know. While there is a file `refusal`,
    it refuses every job with the words in it, and counts them in `refused`. While there is a file `waiting`, jobs are
    taken and wait for the reason in it. A file `most` says how many jobs are taken in all. `N.state` replaces what
    `squeue` says of a job: "STATE|REASON".
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name, code in PROGRAMS:
        (programs / name).write_text(f"#!{sys.executable}\nfolder = {str(folder)!r}\n{code}")
        (programs / name).chmod(0o755)
    try:
        yield {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    finally:
        for job in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(job.read_text()), signal.SIGKILL)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
