"""What SLURM says of jobs: whether they wait and why, whether they can ever start, and where their logs lie.

Its own programs are asked, `squeue` and `scontrol`. `other_queues` asks other batch systems. Nothing here imports Dask.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from teachonce.batch.job_watch import JobLog, JobState

ANSWER_SECONDS = 60  # a busy controller takes its time; what takes longer is given up, and asked again at the next look
LAST_LINES = 8
LOG_BYTES = 16384  # of a log's end
WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
TAKEN_AWAY = frozenset({"BOOT_FAIL", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"})
# Reasons of SLURM's list (JOB REASON CODES of squeue's manual) that concern the job alone, whatever other jobs do: a
# limit of one job, or a name that does not exist. What other jobs, users, nodes, reservations or an administrator may
# change (Priority, Resources, QOSGrp..., AssocGrp..., ...PerUser, PartitionDown, ReqNodeNotAvail, JobHeld...) may pass.
_HOPELESS = re.compile(
    r"BadConstraints|PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|InvalidAccount|InvalidQOS|AccountNotAllowed"
    r"|QOSNotAllowed|DependencyNeverSatisfied|ReservationDeleted|MaxMemPerLimit"
    r"|(QOS|Assoc|Partition)?Max\w*Per_?Job(Limit)?|(QOS|Assoc)Max(Cpu|Node|GRES|Mem\w*|TRES|BB|Billing|Energy|License)PerNode"
    r"|(QOS|Assoc)Min\w+"
)
_NO_SUCH_JOB = "Invalid job id"


class SlurmQueue:
    """The jobs of a SLURM cluster, asked by its own programs."""

    name = "SLURM"
    cancel_command: tuple[str, ...] = ("scancel",)

    def __init__(self, asks_for: str = "") -> None:
        self.asks_for = asks_for

    async def look(self, jobs: Sequence[str]) -> dict[str, JobState] | None:
        """The states of jobs; SLURM forgets a job some minutes after its end. None: SLURM does not answer."""
        ids = ",".join(jobs)
        code, said, complaint = await output_of("squeue", "-h", "-t", "all", "-o", "%i|%T|%r", "-j", ids)
        if code:
            return {} if _NO_SUCH_JOB in complaint else None
        states = {}
        for line in said.splitlines():
            job, *facts = line.strip().split("|", 2)
            if len(facts) == 2:  # a line without them names a cluster, where SLURM_CLUSTERS is set
                state, reason = facts
                states[job] = JobState(
                    words=state if reason in ("", "None") else f"{state} ({reason})",
                    waits=state in WAITING,
                    ended=state in ENDED,
                    cancelled=state == "CANCELLED",
                    hopeless=state in WAITING and is_hopeless(reason),
                    taken_away=state in TAKEN_AWAY,
                )
        return states

    async def log_of(self, job: str, folders: Sequence[Path]) -> JobLog:
        """The last lines that a job wrote: where SLURM says its output went, else by the usual names in `folders`."""
        _, said, _ = await output_of("scontrol", "-o", "show", "job", job)
        named = [Path(path) for path in re.findall(r"\bStd(?:Err|Out)=(\S+)", said)]
        return first_log([*named, *named_like(folders, f"*-{job}.*")])


def named_like(folders: Sequence[Path], pattern: str) -> list[Path]:
    """Files in these folders whose names are so."""
    return [path for folder in folders for path in sorted(folder.glob(pattern))]


def first_log(candidates: Sequence[Path]) -> JobLog:
    """The first of these files that says something."""
    for path in dict.fromkeys(candidates):
        lines = last_lines(path)
        if lines:
            return JobLog(path=str(path), lines=lines)
    return JobLog(path=str(candidates[0]) if candidates else "")


def is_hopeless(reason: str) -> bool:
    """Whether a job with this reason can never start, whatever others do."""
    return _HOPELESS.fullmatch(reason.strip()) is not None


def last_lines(path: Path) -> tuple[str, ...]:
    """The last lines of a log that are not empty; none where it cannot be read."""
    try:
        with open(path, "rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - LOG_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-LAST_LINES:]


async def output_of(*command: str) -> tuple[int, str, str]:
    """Exit code, output and complaints of a program; what does not answer in time or is not there has the code 1."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as problem:
        return 1, "", str(problem)
    try:
        out, err = await asyncio.wait_for(process.communicate(), ANSWER_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, "", f"no answer within {ANSWER_SECONDS} s"
    return process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
