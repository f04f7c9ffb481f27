"""Clusters that another package starts: jobs of a batch system by dask-jobqueue, one worker for each GPU by dask-cuda.

The packages are optional dependencies and are imported only when a description asks for them.
"""

from __future__ import annotations

import asyncio
import importlib
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from teachonce.batch.job_watch import JobWatch, joining
from teachonce.batch.other_queues import job_queue
from teachonce.cluster.batch_description import OPTION, BatchDescription
from teachonce.cluster.client import CLUSTER_SECONDS, close
from teachonce.cluster.description import BRIEF_MEMORY, THREADS_PER_WORKER, WORKER_ENVIRONMENT, CudaDescription
from teachonce.cluster.description_parts import Adaptive, duration_seconds
from teachonce.cluster.workers import supervise
from teachonce.core.machine import calm_waiting
from teachonce.core.progress import SIGNALS, Reporter
from teachonce.errors import EnvironmentFault
from teachonce.phrases import option

CLASSES = {"slurm": "SLURM", "pbs": "PBS", "lsf": "LSF", "sge": "SGE"}
"""How dask-jobqueue's modules and classes call the batch systems: slurm.SLURMJob, SLURMCluster."""
# Any free port: several runs may share a login node, and its other users need not see the dashboards.
DASHBOARD = "127.0.0.1:0"

_ON_ERROR = (
    "depth=${#BASH_SOURCE[@]}; trap 'code=$?; if [ ${#BASH_SOURCE[@]} -le $depth ]; then "
    'echo "job_script_prologue: a command failed with exit code $code: $BASH_COMMAND" >&2; exit $code; fi\' ERR'
)


@contextmanager
def started(
    description: BatchDescription | CudaDescription, reporter: Reporter, threads: int = THREADS_PER_WORKER
) -> Iterator[Any]:
    """Start the Dask cluster of a description; its workers run `threads` tasks at once, and end with the block.

    Raises:
        EnvironmentFault: the needed package is not installed, or the cluster cannot be started.
    """
    kind = description.kind
    watch = _watch(description) if isinstance(description, BatchDescription) else None
    try:
        cluster = (
            batch_cluster(description, watch, threads)
            if isinstance(description, BatchDescription)
            else cuda_cluster(description, threads)
        )
    except (OSError, RuntimeError, ValueError) as problem:
        raise EnvironmentFault(
            f"the {kind} cluster could not be started: {problem}", hint="docs/cluster.md has a description that works"
        ) from problem
    with ExitStack() as stack:
        if watch is not None:
            stack.callback(watch.end)  # after the cluster, which cancels the jobs where all is well
        stack.callback(close, cluster, f"the workers of the {kind} cluster", reporter, CLUSTER_SECONDS)
        if watch is not None and isinstance(description, BatchDescription):
            _submit(cluster, description, watch)
            reporter.note(f"asked {description.system} for workers; the first rows come when the first job has started")
            task = cluster.sync(_begin, watch, cluster)
            stack.callback(cluster.loop.add_callback, task.cancel)
        yield cluster


def _submit(cluster: Any, description: BatchDescription, watch: JobWatch) -> None:
    """Submit the first jobs at once, so that a refusal is seen; from then on, jobs that end are replaced."""
    bounds = description.adaptive or Adaptive(minimum=description.jobs or 1, maximum=description.jobs or 1)
    cluster.scheduler.add_plugin(joining(watch))
    cluster.scale(jobs=max(1, bounds.minimum))
    cluster.sync(_submitted, cluster)
    if watch.taken == 0:
        raise EnvironmentFault(
            f"{description.system} takes no job: {watch.refusal}",
            hint=f"run teachonce where {description.submit} works, such as a login node; look at {_keys(description)}",
        )
    supervise(cluster, watch)
    cluster.adapt(minimum_jobs=bounds.minimum, maximum_jobs=bounds.maximum)


async def _begin(watch: JobWatch, cluster: Any) -> asyncio.Task[None]:
    return asyncio.create_task(watch.watch(cluster))


def _keys(description: BatchDescription) -> str:
    """The keys of a description that decide whether a job is taken and can start."""
    resources = [name for name in ("gres", "gpu") if hasattr(description, name)]
    keys = ["queue", *description.cluster_options(), *resources, "cores", "memory", "walltime", "job_extra_directives"]
    return ", ".join(keys)


async def _submitted(cluster: Any) -> None:
    await cluster


def batch_cluster(
    description: BatchDescription, watch: JobWatch | None = None, threads: int = THREADS_PER_WORKER
) -> Any:
    """Make dask-jobqueue's cluster with one worker process a job; no job is submitted yet.

    Workers leave by themselves before their jobs are ended: a worker that is killed counts as a failure of its tasks.

    Args:
        description: the jobs.
        watch: hears of every job that was taken or refused, which dask-jobqueue only logs.
        threads: number of tasks that a worker runs at once.
    """
    jobqueue = optional_package("dask_jobqueue", "slurm", description.kind)
    lifetime, stagger = description.lifetime_seconds()
    variables = calm_waiting(shared=True) | WORKER_ENVIRONMENT | dask_variables(BRIEF_MEMORY) | description.environment
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # The last one counts: dask-jobqueue asks for one thread a core, and ours are decoding threads of a task. Memory is
    # watched by the batch system: what models take is nothing that Dask could spill.
    options = {
        "nthreads": str(threads),
        "memory-limit": "0",
        "lifetime": f"{lifetime}s",
        "lifetime-stagger": f"{stagger}s",
    }
    name = CLASSES[description.kind]
    return getattr(jobqueue, f"{name}Cluster")(
        job_cls=_job_class(jobqueue, description.kind, watch or _watch(description)),
        cores=description.cores,
        processes=1,
        memory=description.memory,
        walltime=description.walltime,
        queue=description.queue,
        **description.cluster_options(),
        interface=description.interface,
        scheduler_options={"dashboard_address": DASHBOARD},
        log_directory=description.log_directory,
        local_directory=description.local_directory,
        python=description.python,
        death_timeout=duration_seconds(description.death_timeout),
        job_extra_directives=description.directives(),
        job_script_prologue=[*exports, *_guarded(description.job_script_prologue)],
        worker_extra_args=[word for name, value in options.items() for word in (OPTION + name, value)],
    )


def _guarded(commands: Sequence[str]) -> list[str]:
    """The commands of a prologue, of which one that fails ends the job with a line that says so in its log.

    What fails inside a function or a file that is read by `source`, such as `module`, is that function's own affair:
    what counts is how it ends.
    """
    return [_ON_ERROR, *commands, "trap - ERR"] if commands else []


def _watch(description: BatchDescription) -> JobWatch:
    folder = Path(description.log_directory or ".").absolute()
    return JobWatch(job_queue(description.kind, _keys(description)), [folder])


def dask_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dask's settings as the environment variables that give them to a process started elsewhere."""
    return {f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value) for key, value in settings.items()}


def _job_class(jobqueue: Any, kind: str, watch: JobWatch) -> Any:
    """dask-jobqueue's job of a batch system, which says whether it was taken and knows that it has ended."""
    from distributed import Status

    parent: Any = getattr(getattr(jobqueue, kind), f"{CLASSES[kind]}Job")

    class Job(parent):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as problem:  # Dask would log it, and stumble over it at the end
                self.status = Status.running
                watch.refused(self, problem)
            else:
                watch.submitted(self)

        async def close(self) -> None:
            cancelled = True
            if self.job_id:
                try:
                    await self._call([*shlex.split(self.cancel_command), self.job_id])
                except (OSError, RuntimeError):  # it is gone, or nothing answers: the guard tries again at the end
                    cancelled = False
            self.status = Status.closed  # which dask-jobqueue forgets, and Dask asserts
            watch.closed(self, cancelled=cancelled)

    if kind != "lsf":
        return Job

    class LsfJob(Job):
        async def _submit_job(self, script_filename: str) -> Any:
            with open(script_filename, "rb") as script:  # dask-jobqueue's own way throws away what bsub complains of
                return await self._call([self.submit_command], stdin=script)

    return LsfJob


def cuda_cluster(description: CudaDescription, threads: int = THREADS_PER_WORKER) -> Any:
    """dask-cuda's LocalCUDACluster: one worker a GPU, which sees its own first and the others behind it."""
    cuda = optional_package("dask_cuda", "cuda", "cuda")
    options: dict[str, Any] = {"threads_per_worker": threads, "memory_limit": 0, "dashboard_address": DASHBOARD}
    if description.devices:
        options["CUDA_VISIBLE_DEVICES"] = list(description.devices)
    import dask

    environment = calm_waiting(shared=True) | WORKER_ENVIRONMENT | description.environment
    with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}):
        return cuda.LocalCUDACluster(**options)


def optional_package(name: str, extra: str, kind: str) -> Any:
    """A module of a package that a kind of cluster needs; what Ctrl-C and SIGTERM mean stays as it was.

    dask-jobqueue lets Ctrl-C end its importer's process with exit code 0 and without a word.

    Raises:
        EnvironmentFault: it is not installed; names the extra of ours that brings it.
    """
    handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        package = name.partition(".")[0].replace("_", "-")
        raise EnvironmentFault(
            option("cluster") + f' with kind = "{kind}" needs the package {package}: {problem}',
            hint=f"pip install 'teachonce[{extra}]'",
        ) from problem
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
