"""Which cluster to use: the choice on the command line, and cluster descriptions in TOML. This module imports no Dask.

It only reads and checks: `client` opens what is described, `jobs` starts batch jobs and GPU workers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from teachonce.core.documents import read_toml
from teachonce.core.strict import decode
from teachonce.errors import UsageError, did_you_mean
from teachonce.phrases import Phrase, option

THREADS_PER_WORKER = 2  # while one task is in the model, another decodes its first images or writes its chunk
# Dask runs a task in a thread, and glibc gives that thread an arena whose large buffers go back to the kernel after
# every batch, to be page-faulted in again. With one arena that keeps them, two small towers do 117 images/s, not 66.
WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
}
# Dask keeps what it did for its dashboard. Its profiler alone takes 100 kB a second, and all of it comes to a gigabyte
# in a day: with these settings what is kept stops growing within minutes.
BRIEF_MEMORY: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.log-length": 120,
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.log-length": 1000,
    "distributed.scheduler.dashboard.tasks.task-stream-length": 1000,
    "distributed.diagnostics.computations.max-history": 10,
}
LEAST_WALLTIME = 300  # seconds: a worker needs a minute to start, and should leave before SLURM ends its job
_SECRET = re.compile(r"(?i)\b\w*(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY)\w*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What would begin another command in a job script; variables such as $TMPDIR are what a description may need.
_COMMAND = re.compile(r"[;&|<>()`\\'\"]")
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|seconds?|minutes?|hours?|days?)")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The workers that the command line asks for; at most one of the three fields is set.

    Raises:
        UsageError: more than one field is set, or a value is out of range.
    """

    workers: int | None = None
    """Number of worker processes on this machine; one where no field is set."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already, such as tcp://10.0.0.1:8786."""
    file: Path | None = None
    """A cluster description in TOML."""

    def __post_init__(self) -> None:
        given = {"workers": self.workers, "scheduler": self.scheduler, "cluster": self.file}
        chosen = [option(name) for name, value in given.items() if value is not None]
        if len(chosen) > 1:
            raise UsageError(
                Phrase(" and ").join(chosen) + " exclude each other: each says where the workers come from"
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(option("workers") + f" must be at least 1, found {self.workers}")
        if self.scheduler is not None and not re.fullmatch(r"[a-z+]+://[^\s/]+/?", self.scheduler):
            raise UsageError(
                option("scheduler")
                + f" {self.scheduler!r} is not an address: expected one like tcp://HOST:8786 or tls://HOST:8786"
            )


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Bounds between which the number of workers follows the amount of work."""

    minimum: int = 0
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            raise ValueError(f"expected 0 <= minimum <= maximum and maximum >= 1, found {self.minimum}, {self.maximum}")


@dataclass(frozen=True, kw_only=True)
class _Common:
    patience: str | None = None
    """How long a run goes on without any worker, such as "30 minutes"."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the worker processes, in addition to the allocator settings that every worker has."""

    def __post_init__(self) -> None:
        if self.patience is not None:
            duration_seconds(self.patience)
        for name, value in self.environment.items():
            if not _NAME.fullmatch(name) or "\0" in value:
                raise ValueError(f"environment: {name!r} and its value {value!r} are nothing that an environment holds")
            _refuse_secret(name, "environment")


@dataclass(frozen=True, kw_only=True)
class LocalDescription(_Common):
    """Worker processes on this machine."""

    kind: Literal["local"]
    workers: int | None = None
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of(workers=self.workers, adaptive=self.adaptive, needed=False)

    @property
    def most_workers(self) -> int:
        """Return the largest number of workers that may share this machine."""
        return self.adaptive.maximum if self.adaptive else self.workers or 1


@dataclass(frozen=True, kw_only=True)
class CudaDescription(_Common):
    """One worker for each GPU of this machine, started by dask-cuda."""

    kind: Literal["cuda"]
    devices: tuple[int, ...] = ()
    """GPU numbers; an empty list stands for all GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.devices)) < len(self.devices) or min(self.devices, default=0) < 0:
            raise ValueError(f"devices must be different GPU numbers, found {list(self.devices)}")


@dataclass(frozen=True, kw_only=True)
class SlurmDescription(_Common):
    """One worker for each SLURM job, started by dask-jobqueue."""

    kind: Literal["slurm"]
    cores: int
    memory: str
    walltime: str
    jobs: int | None = None
    adaptive: Adaptive | None = None
    queue: str | None = None
    account: str | None = None
    gres: str | None = None
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
        _one_of(jobs=self.jobs, adaptive=self.adaptive, needed=True)
        if self.cores < 1:
            raise ValueError(f"cores must be at least 1, found {self.cores}")
        if not re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B?)", self.memory):
            raise ValueError(f'memory must be a size such as "32 GB", found {self.memory!r}')
        for line in self.job_script_prologue:
            _refuse_secret(line, "job_script_prologue")
        self._require_no_commands()
        duration_seconds(self.death_timeout)
        lifetime, stagger = self.lifetime_seconds()
        if lifetime + stagger >= walltime_seconds(self.walltime) or stagger >= lifetime:
            raise ValueError(
                f"a worker lives {lifetime} s, give or take {stagger} s, and walltime {self.walltime} is "
                f"{walltime_seconds(self.walltime)} s: it must leave before SLURM ends it"
            )

    def _require_no_commands(self) -> None:
        """Refuse what would add lines or commands to the job script: `job_script_prologue` alone is for commands."""
        for name in ("queue", "account", "gres", "log_directory", "local_directory", "interface", "python"):
            value = getattr(self, name)
            in_command = name in ("local_directory", "interface", "python")
            if value is not None and (not value.isprintable() or (in_command and _COMMAND.search(value))):
                raise ValueError(f"{name} must be plain words, found {value!r}; commands go into job_script_prologue")
        for directive in self.job_extra_directives:
            if not directive.isprintable():
                raise ValueError(f"job_extra_directives: each is one line, found {directive!r}")

    def lifetime_seconds(self) -> tuple[int, int]:
        """Return when a worker leaves by itself, and the spread of that time, so that not all workers leave at once.

        By default the spread is 1/24 of the walltime, between 1 and 10 minutes, and the latest worker leaves one spread
        before its job ends: a worker that SLURM kills counts as a failure of every task that it held, one that leaves
        by itself does not.
        """
        wall = walltime_seconds(self.walltime)
        default = min(600, max(60, wall // 24))
        stagger = duration_seconds(self.lifetime_stagger) if self.lifetime_stagger else default
        return (duration_seconds(self.lifetime) if self.lifetime else wall - 2 * stagger), stagger


Description = LocalDescription | CudaDescription | SlurmDescription
KINDS: dict[str, type[Any]] = {"local": LocalDescription, "cuda": CudaDescription, "slurm": SlurmDescription}


def load_description(path: Path) -> Description:
    """Read a cluster description.

    Raises:
        UsageError: the file cannot be read, or holds something that is not understood.
    """
    try:
        data = read_toml(path)
    except OSError as problem:
        raise UsageError(option("cluster") + f" {path}: cannot be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise UsageError(option("cluster") + f" {path}: is not TOML: {problem}") from problem
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        complaint = "the key 'kind' is missing" if kind is None else f"kind: {kind!r} is not allowed"
        raise UsageError(f"{path}: {complaint}: {did_you_mean(str(kind), KINDS)}")
    description: Description = decode(KINDS[kind], data, str(path))
    return description


def walltime_seconds(text: str) -> int:
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
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if total < LEAST_WALLTIME:
        raise ValueError(f"walltime {text!r} is {total} s; a worker needs at least {LEAST_WALLTIME} s to be of use")
    return total


def duration_seconds(text: str) -> int:
    """Read a time such as "90 s", "30 minutes", "2h".

    Raises:
        ValueError: the text is no such time.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is not a time such as "90 s", "30 minutes" or "2h"')
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2][0]]


def _one_of(*, needed: bool, adaptive: Adaptive | None, **fixed: int | None) -> None:
    ((name, count),) = fixed.items()
    if count is not None and adaptive is not None:
        raise ValueError(f"'{name}' and 'adaptive' exclude each other")
    if needed and count is None and adaptive is None:
        raise ValueError(f"give '{name}' or 'adaptive'")
    if count is not None and count < 1:
        raise ValueError(f"{name} must be at least 1, found {count}")


def _refuse_secret(text: str, where: str) -> None:
    """Refuse a secret: this text goes into a job script, which others on the cluster may read."""
    secret = _SECRET.search(text)
    if secret:
        raise ValueError(
            f"{where} names {secret[0]}: a secret does not belong into a job script; let the workers find it in a file "
            "that only you can read (~/.aws/credentials)"
        )
