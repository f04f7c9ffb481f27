"""What `cluster_check` is asked for and what it answers. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from teachonce.cluster.description import ClusterSpec
from teachonce.errors import EnvironmentFault
from teachonce.stages.doctor.request import Finding


@dataclass(frozen=True, kw_only=True)
class ClusterCheckRequest:
    """Which worker is asked, and what it shall see."""

    cluster: ClusterSpec
    """A description, of which one worker is started, or a scheduler."""
    labels: Path | None = None
    """Where a store shall lie: it need not be there, its folder must."""
    root: Path | None = None
    """The folder of the data."""
    models: tuple[str, ...] = ()
    """Teacher and students: each is loaded."""
    plan: Path | None = None
    """A plan of `plan`: the memory that it says is compared with the worker's."""


@dataclass(frozen=True, kw_only=True)
class WorkerLook:
    """What a worker says of its process, its machine and its disks."""

    host: str
    user: str
    folder: str
    """In which the worker runs."""
    executable: str
    versions: dict[str, str]
    """Package -> version, and Python's."""
    cores: int
    cuda_visible_devices: str | None
    gpus: tuple[str, ...]
    """Name and memory of each GPU that torch sees."""
    memory_limit: int
    """Bytes that the worker may use."""
    memory_limit_by: str
    """Who says so, in a few words."""
    memory_used: int
    """Bytes of the process, with the models that were asked for."""
    data_mb_per_second: float | None
    """Read in small ranges at random places by several threads, as `teach` reads; None without data."""
    fsync_ms: float | None
    """Until a small file is on the store's disk, in the median; None without a store."""
    findings: tuple[Finding, ...]
    """What the worker tried itself."""


@dataclass(frozen=True, kw_only=True)
class ClusterCheckResult:
    """All findings; those of the worker first."""

    findings: tuple[Finding, ...]
    warnings: int
    failures: int
    worker: WorkerLook | None
    """None where a worker came and could not answer."""
    seconds: float
    """Until the worker had answered, with its time in the queue."""

    @property
    def exit_code(self) -> int:
        """0, or 6 where something does not fit."""
        return EnvironmentFault.exit_code if self.failures else 0
