"""Descriptions of jobs of a batch system, one worker a job: SLURM, PBS, LSF and SGE. This module imports no Dask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from teachonce.cluster.description_parts import Adaptive, Common, duration_seconds, one_of, refuse_secret

OPTION = "--"  # begins the options of other programs, SLURM and Dask
LEAST_WALLTIME = 300  # seconds: a worker needs a minute to start, and should leave before its job is ended
# What would begin another command in a job script; variables such as $TMPDIR are what a description may need.
_COMMAND = re.compile(r"[;&|<>()`\\'\"]")
_LINES = ("queue", "account", "project", "gres", "gpu", "resource_spec", "parallel_environment", "log_directory")
_WORDS = ("local_directory", "interface", "python")


@dataclass(frozen=True, kw_only=True)
class BatchDescription(Common):
    """One worker for each job of a batch system, started by dask-jobqueue."""

    system: ClassVar[str]
    """The batch system's name in a sentence."""
    submit: ClassVar[str]
    """The program that takes a job."""

    kind: str
    cores: int
    memory: str
    walltime: str
    jobs: int | None = None
    adaptive: Adaptive | None = None
    queue: str | None = None
    job_extra_directives: tuple[str, ...] = ()
    job_script_prologue: tuple[str, ...] = ()
    lifetime: str | None = None
    lifetime_stagger: str | None = None
    death_timeout: str = "5 minutes"
    log_directory: str | None = None
    local_directory: str | None = None
    interface: str | None = None
    python: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(jobs=self.jobs, adaptive=self.adaptive, needed=True)
        if self.cores < 1:
            raise ValueError(f"cores must be at least 1, found {self.cores}")
        if not re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B?)", self.memory):
            raise ValueError(f'memory must be a size such as "32 GB", found {self.memory!r}')
        for line in self.job_script_prologue:
            refuse_secret(line, "job_script_prologue")
        self._require_no_commands()
        duration_seconds(self.death_timeout)
        lifetime, stagger = self.lifetime_seconds()
        if lifetime + stagger >= self.walltime_seconds() or stagger >= lifetime:
            raise ValueError(
                f"a worker lives {lifetime} s, give or take {stagger} s, and walltime {self.walltime} is "
                f"{self.walltime_seconds()} s: it must leave before {self.system} ends it"
            )

    def _require_no_commands(self) -> None:
        """Refuse what would add lines or commands to the job script: `job_script_prologue` alone is for commands."""
        for name in (*_LINES, *_WORDS):
            value = getattr(self, name, None)
            if value is not None and (not value.isprintable() or (name in _WORDS and _COMMAND.search(value))):
                raise ValueError(f"{name} must be plain words, found {value!r}; commands go into job_script_prologue")
        for directive in self.job_extra_directives:
            if not directive.isprintable():
                raise ValueError(f"job_extra_directives: each is one line, found {directive!r}")

    def lifetime_seconds(self) -> tuple[int, int]:
        """Return when a worker leaves by itself, and the spread of that time, so that not all workers leave at once.

        By default the spread is 1/24 of the walltime, between 1 and 10 minutes, and the latest worker leaves one spread
        before its job ends: a worker that is killed counts as a failure of every task that it held, one that leaves by
        itself does not.
        """
        wall = self.walltime_seconds()
        default = min(600, max(60, wall // 24))
        stagger = duration_seconds(self.lifetime_stagger) if self.lifetime_stagger else default
        return (duration_seconds(self.lifetime) if self.lifetime else wall - 2 * stagger), stagger

    @property
    def most_jobs(self) -> int:
        """The largest number of jobs at once."""
        return self.adaptive.maximum if self.adaptive else self.jobs or 1

    def walltime_seconds(self) -> int:
        """The walltime, read as the batch system reads it.

        Raises:
            ValueError: it is no such time, or less than five minutes.
        """
        raise NotImplementedError

    def directives(self) -> list[str]:
        """The lines that ask for what dask-jobqueue has no key for, without prefix; the person's own come last."""
        return list(self.job_extra_directives)

    def cluster_options(self) -> dict[str, str | None]:
        """The keys that only this batch system's class of dask-jobqueue has."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SlurmDescription(BatchDescription):
    """Jobs of SLURM."""

    system: ClassVar[str] = "SLURM"
    submit: ClassVar[str] = "sbatch"

    kind: Literal["slurm"]
    account: str | None = None
    gres: str | None = None

    def walltime_seconds(self) -> int:
        """The walltime: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS."""
        return slurm_seconds(self.walltime)

    def directives(self) -> list[str]:
        """`gres` is a directive. A job that SLURM takes away is replaced by another, unless `requeue` is asked for."""
        requeue = [] if any("requeue" in line for line in self.job_extra_directives) else [f"{OPTION}no-requeue"]
        return [*([f"{OPTION}gres={self.gres}"] if self.gres else []), *requeue, *self.job_extra_directives]

    def cluster_options(self) -> dict[str, str | None]:
        """Who pays."""
        return {"account": self.account}


@dataclass(frozen=True, kw_only=True)
class PbsDescription(BatchDescription):
    """Jobs of PBS: PBS Professional, OpenPBS, Torque."""

    system: ClassVar[str] = "PBS"
    submit: ClassVar[str] = "qsub"

    kind: Literal["pbs"]
    account: str | None = None
    resource_spec: str | None = None
    """What `-l` asks for, such as "select=1:ncpus=8:ngpus=1:mem=48gb"; else `cores` and `memory`."""

    def walltime_seconds(self) -> int:
        """The walltime: seconds, MM:SS, HH:MM:SS."""
        return _clock_seconds(self.walltime, "PBS")

    def cluster_options(self) -> dict[str, str | None]:
        """Who pays, and the resources."""
        return {"account": self.account, "resource_spec": self.resource_spec}


@dataclass(frozen=True, kw_only=True)
class LsfDescription(BatchDescription):
    """Jobs of LSF."""

    system: ClassVar[str] = "LSF"
    submit: ClassVar[str] = "bsub"

    kind: Literal["lsf"]
    project: str | None = None
    gpu: str | None = None
    """What `-gpu` asks for, such as "num=1"."""

    def walltime_seconds(self) -> int:
        """The walltime: minutes, HH:MM."""
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", self.walltime)
        if match is None:
            raise ValueError(f'walltime {self.walltime!r} is not a time as LSF writes it: "04:00" or "240", minutes')
        return _long_enough(self.walltime, 3600 * int(match[1] or 0) + 60 * int(match[2]))

    def directives(self) -> list[str]:
        """`gpu` is a directive."""
        return [*([f'-gpu "{self.gpu}"'] if self.gpu else []), *self.job_extra_directives]

    def cluster_options(self) -> dict[str, str | None]:
        """Who pays."""
        return {"project": self.project}


@dataclass(frozen=True, kw_only=True)
class SgeDescription(BatchDescription):
    """Jobs of SGE: Grid Engine of Sun, Univa, Altair."""

    system: ClassVar[str] = "SGE"
    submit: ClassVar[str] = "qsub"

    kind: Literal["sge"]
    project: str | None = None
    resource_spec: str | None = None
    """What `-l` asks for in the words of this cluster, such as "h_vmem=6G,gpu=1"."""
    parallel_environment: str | None = None
    """The parallel environment whose slots are cores of one host, such as "smp"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cores > 1 and self.parallel_environment is None:
            raise ValueError(
                f'cores = {self.cores} needs the key parallel_environment, such as "smp": without it SGE gives one '
                "core (`qconf -spl` lists those of this cluster)"
            )

    def walltime_seconds(self) -> int:
        """The walltime: seconds, MM:SS, HH:MM:SS."""
        return _clock_seconds(self.walltime, "SGE")

    def directives(self) -> list[str]:
        """Cores are slots of a parallel environment, and SGE takes no notice of a script's first line."""
        slots = [f"-pe {self.parallel_environment} {self.cores}"] if self.parallel_environment else []
        return ["-S /bin/bash", *slots, *self.job_extra_directives]

    def cluster_options(self) -> dict[str, str | None]:
        """Who pays, and the resources."""
        return {"project": self.project, "resource_spec": self.resource_spec}


def slurm_seconds(text: str) -> int:
    """Read a time in one of SLURM's forms: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.

    Raises:
        ValueError: the text has none of these forms, or says less than five minutes.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise ValueError(f'walltime {text!r} is not a time as SLURM writes it, such as "04:00:00" or "1-00:00"')
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (numbers + [0, 0])[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, numbers[0], (numbers[1:] or [0])[0]
    return _long_enough(text, int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)


def _clock_seconds(text: str, system: str) -> int:
    """Read seconds, MM:SS or HH:MM:SS, as PBS and SGE write a time."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        raise ValueError(f'walltime {text!r} is not a time as {system} writes it, such as "04:00:00", or seconds')
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return _long_enough(text, 3600 * hours + 60 * minutes + seconds)


def _long_enough(text: str, seconds: int) -> int:
    if seconds < LEAST_WALLTIME:
        raise ValueError(f"walltime {text!r} is {seconds} s; a worker needs at least {LEAST_WALLTIME} s to be of use")
    return seconds
