"""What PBS, LSF and SGE say of jobs, asked by their own programs: `qstat -f`, `bjobs`, `qstat`. No Dask is imported."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from pathlib import Path

from teachonce.batch.job_queues import SlurmQueue, first_log, named_like, output_of
from teachonce.batch.job_watch import JobLog, JobQueue, JobState

_PBS_UNKNOWN = re.compile(r"Unknown Job|has finished", re.IGNORECASE)
_LSF_UNKNOWN = re.compile(r"is not found|No (matching|unfinished) job", re.IGNORECASE)
_SGE_HELD = "E"  # a state with this letter waits for a person: its script could not be started


def job_queue(kind: str, asks_for: str) -> JobQueue:
    """The batch system of a kind, whose descriptions ask for jobs by these keys."""
    queues: dict[str, type[SlurmQueue | PbsQueue | LsfQueue | SgeQueue]] = {
        "slurm": SlurmQueue,
        "pbs": PbsQueue,
        "lsf": LsfQueue,
        "sge": SgeQueue,
    }
    queue: JobQueue = queues[kind](asks_for)
    return queue


class PbsQueue:
    """Jobs of PBS, in the words of `qstat -f`, which PBS Professional, OpenPBS and Torque share."""

    name = "PBS"
    cancel_command: tuple[str, ...] = ("qdel",)

    def __init__(self, asks_for: str = "") -> None:
        self.asks_for = asks_for

    async def look(self, jobs: Sequence[str]) -> dict[str, JobState] | None:
        """The states of jobs; a job that has ended is unknown. None: PBS does not answer."""
        code, said, complaint = await output_of("qstat", "-f", *jobs)
        if code and not said and not _PBS_UNKNOWN.search(complaint):
            return None
        states = {}
        for record in re.split(r"^Job Id:", said.replace("\n\t", ""), flags=re.MULTILINE)[1:]:
            facts = dict(re.findall(r"^\s+(\w+) = (.*)$", record, re.MULTILINE))
            state, comment = facts.get("job_state", ""), facts.get("comment", "").strip()
            number = re.match(r"\s*(\d+)", record)
            if number and state:
                states[number[1]] = JobState(
                    words=f"{state} ({comment})" if comment else state,
                    waits=state in "HQTW",
                    ended=state in "CEFX",
                    hopeless=state == "Q" and comment.startswith("Can Never Run"),
                )
        return states

    async def log_of(self, job: str, folders: Sequence[Path]) -> JobLog:
        """The last lines of NAME.eJOB and NAME.oJOB, and of what PBS names JOB.HOST.ER in a folder of logs."""
        patterns = (f"*.e{job}", f"*.o{job}", f"{job}.*.ER", f"{job}.*.OU")
        return first_log([path for pattern in patterns for path in named_like(folders, pattern)])


class LsfQueue:
    """Jobs of LSF, in the words of `bjobs`."""

    name = "LSF"
    cancel_command: tuple[str, ...] = ("bkill",)

    def __init__(self, asks_for: str = "") -> None:
        self.asks_for = asks_for

    async def look(self, jobs: Sequence[str]) -> dict[str, JobState] | None:
        """The states of jobs; LSF forgets a job an hour after its end. None: LSF does not answer."""
        columns = "jobid stat pend_reason delimiter='|'"
        code, said, complaint = await output_of("bjobs", "-a", "-noheader", "-o", columns, *jobs)
        if code and not said and not _LSF_UNKNOWN.search(complaint):
            return None
        states = {}
        for line in said.splitlines():
            job, state, reason = (line.strip().split("|", 2) + ["", ""])[:3]
            if job.isdecimal():
                states[job] = JobState(
                    words=state if reason.strip("- ") == "" else f"{state} ({reason})",
                    waits=state in ("PEND", "PSUSP", "WAIT"),
                    ended=state in ("DONE", "EXIT", "ZOMBI"),
                )
        return states

    async def log_of(self, job: str, folders: Sequence[Path]) -> JobLog:
        """The last lines of NAME-JOB.err and NAME-JOB.out, as dask-jobqueue names them."""
        return first_log(named_like(folders, f"*-{job}.*"))


class SgeQueue:
    """Jobs of SGE, in the words of `qstat`."""

    name = "SGE"
    cancel_command: tuple[str, ...] = ("qdel",)

    def __init__(self, asks_for: str = "") -> None:
        self.asks_for = asks_for

    async def look(self, jobs: Sequence[str]) -> dict[str, JobState] | None:
        """The states of jobs; a job that has ended is unknown. None: SGE does not answer."""
        code, said, _ = await output_of("qstat", "-u", getpass.getuser())
        if code:
            return None
        states = {}
        for line in said.splitlines():
            words = line.split()
            if len(words) > 4 and words[0] in jobs:
                state = words[4]
                held = _SGE_HELD in state
                reason = await self._error(words[0]) if held else ""
                states[words[0]] = JobState(
                    words=f"{state} ({reason})" if reason else state, waits="w" in state, hopeless=held
                )
        return states

    async def _error(self, job: str) -> str:
        """Why SGE could not start a job."""
        _, said, _ = await output_of("qstat", "-j", job)
        match = re.search(r"^error reason\s+\d+:\s*(.*)$", said, re.MULTILINE)
        return match[1].strip() if match else ""

    async def log_of(self, job: str, folders: Sequence[Path]) -> JobLog:
        """The last lines of NAME.oJOB, which holds both streams."""
        return first_log(named_like(folders, f"*.[oe]{job}"))
