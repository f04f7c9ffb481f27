"""Stand-ins for the programs of PBS, LSF and SGE, which start job scripts right here, for tests. It tests nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUBMIT = """
import pathlib, subprocess, sys

folder = pathlib.Path(folder)
script = sys.stdin.read() if kind == "lsf" else pathlib.Path(sys.argv[-1]).read_text()
if "nobody" in script:
    sys.exit({"pbs": "qsub: Invalid account", "lsf": "nobody: No such project. Job not submitted.",
              "sge": 'Unable to run job: job rejected: the project "nobody" does not exist.'}[kind])
number = 1
while (folder / f"{number}.sh").exists():
    number += 1
job = folder / f"{number}.sh"
job.write_text(script)
if not (folder / "waiting").exists():
    log = job.with_suffix(".log").open("wb")
    started = subprocess.Popen(["bash", job], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    job.with_suffix(".pid").write_text(str(started.pid))
print({"pbs": f"{number}.head.cluster", "lsf": f"Job <{number}> is submitted to default queue <normal>.",
       "sge": f'Your job {number} ("dask-worker") has been submitted'}[kind])
"""
CANCEL = """
import os, pathlib, signal, sys

job = pathlib.Path(folder, sys.argv[-1] + ".sh")
if job.with_suffix(".pid").exists():
    os.killpg(int(job.with_suffix(".pid").read_text()), signal.SIGKILL)
job.with_suffix(".cancelled").touch()
"""
ASK = """
import pathlib, sys

says = pathlib.Path(folder, "says")
if not says.exists():
    sys.exit("the server does not answer")
print(says.read_text(), end="")
"""
PROGRAMS = {"pbs": ("qsub", "qdel", "qstat"), "lsf": ("bsub", "bkill", "bjobs"), "sge": ("qsub", "qdel", "qstat")}


@contextmanager
def stand_in(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """Variables under which the programs of a batch system start a job script right here, and end it: N.sh, N.log.

    They refuse what names `nobody`. Asked for their jobs they print the file `says`, and fail where there is none.
    Where there is a file `waiting`, jobs do not start.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name, code in zip(PROGRAMS[kind], (SUBMIT, CANCEL, ASK), strict=True):
        (programs / name).write_text(f"#!{sys.executable}\nfolder, kind = {str(folder)!r}, {kind!r}\n{code}")
        (programs / name).chmod(0o755)
    try:
        yield {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    finally:
        for job in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(job.read_text()), signal.SIGKILL)
