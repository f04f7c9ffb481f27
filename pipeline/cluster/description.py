"""Which cluster to use: the choice on the command line, and cluster descriptions in TOML. This module imports no Dask.

It only reads and checks: `client` opens what is described, `jobs` starts batch jobs and GPU workers,
`kubernetes` pods.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from teachonce.cluster.batch_description import (
    BatchDescription,
    LsfDescription,
    PbsDescription,
    SgeDescription,
    SlurmDescription,
)
from teachonce.cluster.description_parts import Adaptive, Common, duration_seconds, one_of
from teachonce.core.documents import JSON_BYTES, json_in, read_toml
from teachonce.core.outside import read_plain
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
_ADDRESS = re.compile(r"[a-z+]+://[^\s/]+/?")
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_SCHEDULER_FILE = ".json"
_WRITING_SECONDS = 10.0  # Dask writes the file in place: whoever looks too early sees a part of it


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """The workers that the command line asks for; at most one of the three fields is set.

    Raises:
        UsageError: more than one field is set, or a value is out of range.
    """

    workers: int | None = None
    """Number of worker processes on this machine; one where no field is set."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs already, such as tcp://10.0.0.1:8786, or the path of its scheduler file."""
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
        named = self.scheduler is None or self.scheduler.endswith(_SCHEDULER_FILE) or _ADDRESS.fullmatch(self.scheduler)
        if not named:
            raise UsageError(
                option("scheduler")
                + f" {self.scheduler!r} is not an address: expected one like tcp://HOST:8786 or tls://HOST:8786, or a "
                f"scheduler file, whose name ends in {_SCHEDULER_FILE}"
            )


@dataclass(frozen=True, kw_only=True)
class LocalDescription(Common):
    """Worker processes on this machine."""

    kind: Literal["local"]
    workers: int | None = None
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(workers=self.workers, adaptive=self.adaptive, needed=False)

    @property
    def most_workers(self) -> int:
        """Return the largest number of workers that may share this machine."""
        return self.adaptive.maximum if self.adaptive else self.workers or 1


@dataclass(frozen=True, kw_only=True)
class CudaDescription(Common):
    """One worker for each GPU of this machine, started by dask-cuda."""

    kind: Literal["cuda"]
    devices: tuple[int, ...] = ()
    """GPU numbers; an empty list stands for all GPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.devices)) < len(self.devices) or min(self.devices, default=0) < 0:
            raise ValueError(f"devices must be different GPU numbers, found {list(self.devices)}")


@dataclass(frozen=True, kw_only=True)
class KubernetesDescription(Common):
    """Pods of a Kubernetes cluster, one worker a pod, started by dask-kubernetes' operator."""

    kind: Literal["kubernetes"]
    image: str
    """It holds this version of teachonce, and Dask's programs on its path."""
    cores: int
    memory: str
    workers: int | None = None
    adaptive: Adaptive | None = None
    gpus: int = 0
    """GPUs of a pod: none, or one."""
    gpu_resource: str = "nvidia.com/gpu"
    namespace: str | None = None
    volumes: dict[str, str] = field(default_factory=dict)
    """Where a volume is mounted in each worker -> the name of the claim: the store, the data and models."""
    secrets: tuple[str, ...] = ()
    """Names of Kubernetes' secrets whose keys become variables of the workers."""
    service_account: str | None = None
    start_timeout: str = "10 minutes"
    """How long the scheduler's pod may take to start; fetching a large image takes minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(workers=self.workers, adaptive=self.adaptive, needed=True)
        duration_seconds(self.start_timeout)
        if self.cores < 1:
            raise ValueError(f"cores must be at least 1, found {self.cores}")
        if self.gpus not in (0, 1):
            raise ValueError(f"gpus must be 0 or 1, found {self.gpus}: a worker uses one GPU; start more workers")
        self.memory_quantity()
        if not re.fullmatch(r"[\x21-\x7e]+", self.image):
            raise ValueError(f"image must be the name of an image, found {self.image!r}")
        named = [*filter(None, (self.namespace, self.service_account)), *self.volumes.values(), *self.secrets]
        for name in named:
            if not _KUBERNETES_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name in Kubernetes: small letters, digits, '-' and '.'")
        for place in self.volumes:
            if not place.startswith("/"):
                raise ValueError(f"volumes: {place!r} must be an absolute path")

    @property
    def most_workers(self) -> int:
        """The largest number of pods with a worker at once."""
        return self.adaptive.maximum if self.adaptive else self.workers or 1

    def memory_quantity(self) -> str:
        """The memory as Kubernetes writes it: "48G", "48Gi".

        Raises:
            ValueError: it is no size.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B?", self.memory)
        if match is None:
            raise ValueError(f'memory must be a size such as "32 GB", found {self.memory!r}')
        unit = match[2].lower() if (match[2], match[3]) == ("K", "") else match[2]
        return f"{match[1]}{unit}{match[3]}"


Description = LocalDescription | CudaDescription | BatchDescription | KubernetesDescription
KINDS: dict[str, type[Any]] = {
    "local": LocalDescription,
    "cuda": CudaDescription,
    "slurm": SlurmDescription,
    "pbs": PbsDescription,
    "lsf": LsfDescription,
    "sge": SgeDescription,
    "kubernetes": KubernetesDescription,
}


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


def one_worker(description: Description) -> Description:
    """The same description with one worker, for a look at what it gives."""
    if isinstance(description, LocalDescription):
        return replace(description, workers=1, adaptive=None)
    if isinstance(description, CudaDescription):
        return replace(description, devices=description.devices[:1] or (0,))
    if isinstance(description, KubernetesDescription):
        return replace(description, workers=1, adaptive=None)
    return replace(description, jobs=1, adaptive=None)


def address_in(scheduler: str) -> str:
    """The address of a scheduler that is given by its address or by the path of its file.

    Dask's scheduler writes that file where it is started with its option for it.

    Raises:
        UsageError: there is no such file, or it holds no address.
    """
    if not scheduler.endswith(_SCHEDULER_FILE):
        return scheduler
    until = time.monotonic() + _WRITING_SECONDS
    while True:
        try:
            return _address(Path(scheduler))
        except FileNotFoundError as problem:
            raise UsageError(
                option("scheduler") + f" {scheduler}: there is no such file",
                hint="a scheduler that was started with this scheduler file writes it; is it running?",
            ) from problem
        except OSError as problem:
            raise UsageError(
                option("scheduler") + f" {scheduler}: cannot be read: {problem.strerror or problem}"
            ) from problem
        except ValueError as problem:
            if time.monotonic() > until:
                raise UsageError(
                    option("scheduler") + f" {scheduler}: is no scheduler file: {problem}",
                    hint="a scheduler file is JSON with the key 'address', such as tcp://10.0.0.1:8786",
                ) from problem
            time.sleep(0.2)


def _address(file: Path) -> str:
    """The address that a whole scheduler file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else, or is not complete.
    """
    document = json_in(read_plain(file, JSON_BYTES))
    address = document.get("address") if isinstance(document, dict) else None
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise ValueError(f"the key 'address' must be one like tcp://HOST:8786, found {json.dumps(address)}")
    return address
