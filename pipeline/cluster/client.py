"""Where tasks run, by means of Dask: worker processes here, a scheduler that runs already, or a described cluster.

`task_window` keeps the workers busy; `description` says what to open and imports no Dask.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.client import Future
from distributed.comm import CommClosedError

from teachonce.cluster.batch_description import BatchDescription
from teachonce.cluster.carrying import carried
from teachonce.cluster.description import (
    BRIEF_MEMORY,
    THREADS_PER_WORKER,
    WORKER_ENVIRONMENT,
    ClusterSpec,
    CudaDescription,
    Description,
    KubernetesDescription,
    LocalDescription,
    address_in,
    load_description,
)
from teachonce.cluster.description_parts import Adaptive
from teachonce.cluster.quiet import dask_silenced
from teachonce.cluster.scheduler_check import expect_memory, require_same_version
from teachonce.cluster.task_window import ALLOWED_FAILURES, run_tasks
from teachonce.cluster.tls import PLAIN_HINT, refusal_hint, require_certificates
from teachonce.cluster.workers import PATIENCE_KEY, lost
from teachonce.core.devices import DeviceFacts, device_facts, visible_gpus
from teachonce.core.machine import THREADS_VARIABLE, calm_waiting, choose_threads, default_threads
from teachonce.core.progress import Reporter, Silent
from teachonce.errors import EnvironmentFault

__all__ = [
    "ClusterSpec",
    "local_cluster",
    "open_cluster",
    "open_described",
    "run_tasks",
    "close",
    "expect_memory",
    "facts_of_a_worker",
    "runs_here",
    "threads_of",
    "warm_up",
    "worker_index",
    "worker_threads",
]
CLUSTER_SECONDS = 60  # workers that were started here, on a machine that may be busy, are given so long to end
CLOSE_SECONDS = 10  # a scheduler that does not answer must not hold up the end of a run


@contextmanager
def open_cluster(spec: ClusterSpec, reporter: Reporter, threads: int = THREADS_PER_WORKER) -> Iterator[Client]:
    """Open a client of the cluster that `spec` names; what this call started is gone when the block ends.

    An existing scheduler and its workers go on running: the client takes back only this run's tasks.

    Args:
        spec: where the workers come from.
        reporter: receives what a person should know.
        threads: number of tasks that each worker started here runs at once.

    Raises:
        UsageError: the cluster description holds something that is not understood.
        EnvironmentFault: nothing answers, no worker joins, a worker has another version of teachonce, or a package is
            not installed.
    """
    if spec.scheduler is not None:
        with _existing_scheduler(address_in(spec.scheduler), reporter) as client:
            yield client
    elif spec.file is not None:
        with open_described(load_description(spec.file), reporter, threads) as client:
            yield client
    else:
        with local_cluster(spec.workers or 1, threads=threads, reporter=reporter) as client:
            yield client


@contextmanager
def local_cluster(
    workers: int,
    environment: Mapping[str, str] | None = None,
    adaptive: Adaptive | None = None,
    threads: int = THREADS_PER_WORKER,
    reporter: Reporter | None = None,
) -> Iterator[Client]:
    """Start worker processes on this machine; they are gone when the block ends.

    The workers end by themselves within seconds when this process is killed. What goes wrong while they are told to
    end is noted and not raised: the work is done by then, or has an error of its own.
    """
    settings = own_settings() | {
        "distributed.worker.preload": ["teachonce.cluster.worker_signals"],
        # Dask applies these settings before a worker process starts:
        "distributed.nanny.pre-spawn-environ": calm_waiting(shared=True) | WORKER_ENVIRONMENT | dict(environment or {}),
    }
    with dask.config.set(settings), dask_silenced(reporter or Silent()), ExitStack() as stack:
        cluster = LocalCluster(
            n_workers=adaptive.minimum if adaptive else workers,
            threads_per_worker=threads,
            processes=True,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
        stack.callback(close, cluster, "the local workers", reporter or Silent(), CLUSTER_SECONDS)
        client = Client(cluster)
        stack.callback(close, client, "connections to the local workers", reporter or Silent())
        if adaptive:
            cluster.adapt(minimum=adaptive.minimum, maximum=adaptive.maximum)
        yield client


def close(opened: Any, what: str, reporter: Reporter, seconds: float = CLOSE_SECONDS) -> None:
    """Close a client or a cluster; on a busy machine Dask gives up waiting, and that is no fault of the work.

    Args:
        opened: the client or the cluster.
        what: its name in a note about what went wrong.
        reporter: receives that note.
        seconds: how long to wait.
    """
    try:
        opened.close(timeout=seconds)
    except (OSError, TimeoutError, RuntimeError) as problem:
        reporter.note(f"{what} did not end within {seconds:g} s ({type(problem).__name__}): nothing waits for them")


def own_settings() -> dict[str, Any]:
    """Return Dask's settings for schedulers and workers that are started here."""
    return BRIEF_MEMORY | {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.worker.memory.terminate": False,  # models and pinned buffers are memory that Dask knows nothing of
        "distributed.worker.memory.pause": False,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
        "logging.distributed": "error",
    }


@contextmanager
def _existing_scheduler(address: str, reporter: Reporter) -> Iterator[Client]:
    require_certificates(address)
    with dask_silenced(reporter):
        try:
            client = Client(address, set_as_default=False)
        except (OSError, TimeoutError, AssertionError) as problem:  # Dask asserts that it was not closed meanwhile
            raise _no_answer(address, problem) from problem
        except ImportError as problem:  # Dask raises ImportError where versions do not fit at all
            raise EnvironmentFault(
                f"the scheduler at {address} refuses this client: {problem}",
                hint="install the same version of dask on both sides",
            ) from problem
        try:
            require_same_version(client, address, reporter)
            yield client
        except CommClosedError as problem:  # a look at the workers, at the instant when the scheduler ended
            raise lost(client, None) from problem
        finally:
            close(client, f"connections to the scheduler at {address}", reporter)


def _no_answer(address: str, problem: Exception) -> EnvironmentFault:
    reached = refusal_hint(address)
    if not reached:
        reached = "is it running, and may this machine reach it? `dask scheduler` prints its address when it starts"
        reached += f"; {PLAIN_HINT}" if isinstance(problem, ConnectionError | CommClosedError) else ""
    return EnvironmentFault(
        f"nothing answers as a Dask scheduler at {address}: {problem or 'the connection was closed'}", hint=reached
    )


@contextmanager
def open_described(description: Description, reporter: Reporter, threads: int = THREADS_PER_WORKER) -> Iterator[Client]:
    """Open a client of the cluster that a description asks for, as `open_cluster` does."""
    patience = {PATIENCE_KEY: description.patience} if description.patience else {}
    with dask.config.set(patience):
        if isinstance(description, LocalDescription):
            settings = description.workers or 1, description.environment, description.adaptive
            with local_cluster(*settings, threads, reporter) as client:
                yield client
        else:
            with (
                dask.config.set(own_settings()),
                dask_silenced(reporter),
                _started(description, reporter, threads) as cluster,
            ):
                client = Client(cluster, set_as_default=False)
                try:
                    yield client
                finally:
                    close(client, "connections to the workers", reporter)


def _started(
    description: CudaDescription | BatchDescription | KubernetesDescription, reporter: Reporter, threads: int
) -> AbstractContextManager[Any]:
    if isinstance(description, KubernetesDescription):
        from teachonce.cluster.kubernetes import pods

        return pods(description, reporter, threads)
    from teachonce.cluster.jobs import started

    return started(description, reporter, threads)


def warm_up(client: Client, task: Callable[[], None]) -> list[Future]:
    """Start `task` on every worker and return at once. Keep the result: Dask forgets tasks whose futures are gone.

    A worker that joins later does the same work in its first real task.
    """
    return [
        client.submit(*carried(task), workers=[address], allow_other_workers=True, pure=False)
        for address in client.nthreads()
    ]


def worker_index() -> int:
    """Return which accelerator of its machine the calling worker should take, counted from 0.

    It is the number at the end of the worker's name: LocalCluster's names are numbers, and `dask worker` with four
    processes named a makes a-0 to a-3. It is 0 outside Dask, for workers without a name (Dask calls them by their
    address), where CUDA_VISIBLE_DEVICES leaves one device, because that device has been chosen already, and in workers
    of dask-cuda: such a worker sees all GPUs of its cluster, its own one first. Where SLURM says more, that counts: see
    `slurm_index`.
    """
    from distributed import get_worker

    if "dask_cuda" in sys.modules:  # every worker of it loads it; it turned the list so that this worker's GPU is first
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and len([device for device in visible.split(",") if device.strip()]) <= 1:
        return 0
    place = slurm_index(os.environ)
    if place is not None:
        return place
    try:
        name = get_worker().name
    except ValueError:  # the caller is no Dask worker
        return 0
    if isinstance(name, int):
        return name
    number = re.search(r"(\d+)$", str(name))
    return int(number[1]) if number and "://" not in str(name) else 0


def slurm_index(variables: Mapping[str, str]) -> int | None:
    """Which of the GPUs that it sees a worker in a SLURM job should take; None where SLURM does not say.

    Workers that `srun` started as tasks of one step take those of their numbers on the node. Where SLURM gave a job
    some of a node's GPUs and yet hides the others by no CUDA_VISIBLE_DEVICES, the numbers of the job's GPUs are those
    of the node; where it hides them by other means they are too large, and count round (`pick_device`).

    Args:
        variables: the worker's environment.
    """
    tasks, task = variables.get("SLURM_STEP_NUM_TASKS", ""), variables.get("SLURM_LOCALID", "")
    place = int(task) if tasks.isdigit() and int(tasks) > 1 and task.isdigit() else None
    listed = variables.get("SLURM_STEP_GPUS") or variables.get("SLURM_JOB_GPUS") or ""
    gpus = [int(number) for number in listed.split(",") if number.strip().isdigit()]
    if gpus and variables.get("CUDA_VISIBLE_DEVICES") is None:
        return gpus[(place or 0) % len(gpus)]
    return place


def threads_of(spec: ClusterSpec) -> int | None:
    """Return the CPU threads of each worker; None where only the worker knows what its machine or job gives it.

    Raises:
        UsageError: the cluster description holds something that is not understood.
    """
    if spec.scheduler is not None:
        return None
    if spec.file is None:
        return default_threads(spec.workers or 1)
    description = load_description(spec.file)
    if isinstance(description, LocalDescription):
        return default_threads(description.most_workers)
    if isinstance(description, CudaDescription):
        return default_threads(len(description.devices) or visible_gpus() or 1)
    return description.cores


def worker_threads() -> int:
    """CPU threads of a worker whose driver named none: its share as `choose_threads` finds it.

    Dask's nannies set OMP_NUM_THREADS themselves; such a number is not a person's wish.
    """
    nanny = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    by_dask = str(nanny.get(THREADS_VARIABLE)) == os.environ.get(THREADS_VARIABLE)
    return choose_threads(heed_variable=not by_dask).count


def runs_here(spec: ClusterSpec) -> bool:
    """Whether the workers are processes of this machine, so that its devices are theirs.

    Raises:
        UsageError: the cluster description holds something that is not understood.
    """
    if spec.scheduler is not None:
        return False
    return spec.file is None or load_description(spec.file).kind in ("local", "cuda")


def facts_of_a_worker(
    client: Client, asked: str, reporter: Reporter, each_look: Callable[[], None] = lambda: None
) -> DeviceFacts:
    """What the first worker that answers says of its device; waits for one as long as `teachonce.patience` says.

    Args:
        client: of the cluster.
        asked: the device that the person wants.
        reporter: told what is waited for.
        each_look: as `run_tasks` takes it.

    Raises:
        UsageError, DeviceFault: the worker has no such device.
        EnvironmentFault: no worker can be hoped for, or one lacks teachonce or has another version of it.
        IncompleteError: no worker answered.
    """
    if not client.nthreads():
        reporter.note("waiting for the first worker, whose device decides about the number format")
    (facts,) = run_tasks(client, _facts, [(asked,)], f"device-{uuid.uuid4().hex}", reporter, each_look=each_look)
    return facts


def _facts(asked: str) -> DeviceFacts:
    return device_facts(asked, worker_index())
