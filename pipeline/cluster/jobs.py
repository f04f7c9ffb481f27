"""Clusters that another package starts: SLURM jobs by dask-jobqueue, one worker for each GPU by dask-cuda.

The packages are optional dependencies and are imported only when a description asks for them.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from teachonce.cluster.client import CLUSTER_SECONDS, close
from teachonce.cluster.description import (
    BRIEF_MEMORY,
    THREADS_PER_WORKER,
    WORKER_ENVIRONMENT,
    Adaptive,
    CudaDescription,
    SlurmDescription,
    duration_seconds,
)
from teachonce.core.machine import calm_waiting
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault
from teachonce.phrases import option

OPTION = "--"  # begins the options of other programs, SLURM and Dask
# Any free port: several runs may share a login node, and its other users need not see the dashboards.
DASHBOARD = "127.0.0.1:0"


@contextmanager
def started(
    description: SlurmDescription | CudaDescription, reporter: Reporter, threads: int = THREADS_PER_WORKER
) -> Iterator[Any]:
    """Start the Dask cluster of a description; its workers run `threads` tasks at once, and end with the block.

    Raises:
        EnvironmentFault: the needed package is not installed, or the cluster cannot be started.
    """
    kind = description.kind
    refused: list[Exception] = []
    try:
        cluster = (
            slurm_cluster(description, refused, threads)
            if isinstance(description, SlurmDescription)
            else cuda_cluster(description, threads)
        )
    except (OSError, RuntimeError, ValueError) as problem:
        raise EnvironmentFault(
            f"the {kind} cluster could not be started: {problem}", hint="docs/cluster.md has a description that works"
        ) from problem
    try:
        if isinstance(description, SlurmDescription):
            _submit(cluster, description, refused)
            reporter.note("asked SLURM for workers; the first rows come when the first job has started")
        yield cluster
    finally:
        close(cluster, f"the workers of the {kind} cluster", reporter, CLUSTER_SECONDS)


def _submit(cluster: Any, description: SlurmDescription, refused: list[Exception]) -> None:
    """Submit a first job at once, so that a refusal is seen; from then on, jobs that end are replaced."""
    bounds = description.adaptive or Adaptive(minimum=description.jobs or 1, maximum=description.jobs or 1)
    cluster.scale(jobs=max(1, bounds.minimum))
    cluster.sync(_submitted, cluster)
    if refused:
        reason = str(refused[0]).partition("stderr:")[2].strip() or str(refused[0])
        raise EnvironmentFault(
            f"SLURM takes no job: {reason}",
            hint="run teachonce where sbatch works, such as a login node; look at queue, account, gres and walltime",
        )
    cluster.adapt(minimum_jobs=bounds.minimum, maximum_jobs=bounds.maximum)


async def _submitted(cluster: Any) -> None:
    await cluster


def slurm_cluster(
    description: SlurmDescription, refused: list[Exception] | None = None, threads: int = THREADS_PER_WORKER
) -> Any:
    """Make dask-jobqueue's SLURMCluster with one worker process a job; no job is submitted yet.

    Workers leave by themselves before SLURM ends their jobs: a worker that SLURM kills counts as a failure of its
    tasks.

    Args:
        description: the jobs.
        refused: receives the reasons for which SLURM took no job, which dask-jobqueue only logs.
        threads: number of tasks that a worker runs at once.
    """
    jobqueue = _package("dask_jobqueue", "slurm")
    lifetime, stagger = description.lifetime_seconds()
    variables = calm_waiting(shared=True) | WORKER_ENVIRONMENT | dask_variables(BRIEF_MEMORY) | description.environment
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    gres = [f"{OPTION}gres={description.gres}"] if description.gres else []
    # The last one counts: dask-jobqueue asks for one thread a core, and ours are decoding threads of a task. Memory is
    # watched by SLURM: what models take is nothing that Dask could spill.
    options = {
        "nthreads": str(threads),
        "memory-limit": "0",
        "lifetime": f"{lifetime}s",
        "lifetime-stagger": f"{stagger}s",
    }
    return jobqueue.SLURMCluster(
        job_cls=_job_class(jobqueue, [] if refused is None else refused),
        cores=description.cores,
        processes=1,
        memory=description.memory,
        walltime=description.walltime,
        queue=description.queue,
        account=description.account,
        interface=description.interface,
        scheduler_options={"dashboard_address": DASHBOARD},
        log_directory=description.log_directory,
        local_directory=description.local_directory,
        python=description.python,
        death_timeout=duration_seconds(description.death_timeout),
        job_extra_directives=[*gres, *description.job_extra_directives],
        job_script_prologue=[*exports, *description.job_script_prologue],
        worker_extra_args=[word for name, value in options.items() for word in (OPTION + name, value)],
    )


def dask_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dask's settings as the environment variables that give them to a process started elsewhere."""
    return {f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value) for key, value in settings.items()}


def _job_class(jobqueue: Any, refused: list[Exception]) -> Any:
    """dask-jobqueue's SLURM job, which says why it was refused and knows that it has ended."""
    from distributed import Status

    class Job(jobqueue.slurm.SLURMJob):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as problem:  # Dask would log it, and stumble over it at the end
                refused.append(problem)
                self.status = Status.running

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed  # which dask-jobqueue forgets, and Dask asserts

    return Job


def cuda_cluster(description: CudaDescription, threads: int = THREADS_PER_WORKER) -> Any:
    """dask-cuda's LocalCUDACluster: one worker a GPU, which sees its own first and the others behind it."""
    cuda = _package("dask_cuda", "cuda")
    options: dict[str, Any] = {"threads_per_worker": threads, "memory_limit": 0, "dashboard_address": DASHBOARD}
    if description.devices:
        options["CUDA_VISIBLE_DEVICES"] = list(description.devices)
    import dask

    environment = calm_waiting(shared=True) | WORKER_ENVIRONMENT | description.environment
    with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}):
        return cuda.LocalCUDACluster(**options)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise EnvironmentFault(
            option("cluster") + f' with kind = "{extra}" needs the package {name.replace("_", "-")}: {problem}',
            hint=f"pip install 'teachonce[{extra}]'",
        ) from problem
