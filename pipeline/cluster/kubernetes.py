"""Workers in pods of a Kubernetes cluster, by dask-kubernetes' operator, which is imported only for them.

The scheduler runs in a pod, too. Kubernetes replaces pods that are lost, and the operator deletes what a driver that
was killed has left once its scheduler has been idle for IDLE_SECONDS.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from teachonce.cluster.client import CLOSE_SECONDS, CLUSTER_SECONDS, close, own_settings
from teachonce.cluster.description import THREADS_PER_WORKER, WORKER_ENVIRONMENT, KubernetesDescription
from teachonce.cluster.description_parts import duration_seconds
from teachonce.cluster.jobs import dask_variables, optional_package
from teachonce.core.machine import calm_waiting
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault

IDLE_SECONDS = 3600
"""Longer than a driver takes between two tasks: it may read all archives through before the first one."""
DEATH_SECONDS = 300
SCHEDULER = {"requests": {"cpu": "1", "memory": "2Gi"}}
OPTION = "--"  # begins the options of Dask's programs


@contextmanager
def pods(description: KubernetesDescription, reporter: Reporter, threads: int = THREADS_PER_WORKER) -> Iterator[Any]:
    """Start the scheduler and the workers of a description; they are deleted when the block ends.

    Raises:
        EnvironmentFault: the package is not installed, or the cluster cannot be started.
    """
    operator = optional_package("dask_kubernetes.operator", "kubernetes", "kubernetes")
    reporter.note("asked Kubernetes for a scheduler and workers; the first rows come when the first pod has started")
    try:
        cluster = operator.KubeCluster(
            namespace=description.namespace,
            custom_cluster_spec=cluster_spec(operator, description, threads),
            resource_timeout=duration_seconds(description.start_timeout),
            shutdown_on_close=True,
            quiet=True,
        )
    except Exception as problem:  # its libraries for HTTP and Kubernetes have errors of their own
        _give_up(operator)
        raise EnvironmentFault(
            f"the Kubernetes cluster could not be started: {type(problem).__name__}: {problem}",
            hint="is the operator of dask-kubernetes installed there, may this user make DaskClusters in the "
            "namespace, and does the image exist? `kubectl get daskclusters,pods` shows what there is",
        ) from problem
    try:
        if description.adaptive is not None:
            cluster.adapt(minimum=description.adaptive.minimum, maximum=description.adaptive.maximum)
        yield cluster
    finally:
        close(cluster, "the pods", reporter, CLUSTER_SECONDS)


def _give_up(operator: Any) -> None:
    """Delete what a failed start has left, now: at the end of the process it would fail again, with a traceback."""
    for cluster in list(getattr(operator.KubeCluster, "_instances", ())):
        with contextlib.suppress(Exception):
            cluster.close(timeout=CLOSE_SECONDS)
        cluster.shutdown_on_close = False


def cluster_spec(operator: Any, description: KubernetesDescription, threads: int) -> dict[str, Any]:
    """The DaskCluster that the operator is asked for."""
    quantity = {"cpu": str(description.cores), "memory": description.memory_quantity()}
    if description.gpus:
        quantity[description.gpu_resource] = str(description.gpus)
    # A pod sees its own GPU only; the number at the end of a pod's name says nothing.
    one_gpu = {"CUDA_VISIBLE_DEVICES": "0"} if description.gpus else {}
    options = {"nthreads": str(threads), "memory-limit": "0", "death-timeout": str(DEATH_SECONDS)}
    first = max(1, description.adaptive.minimum) if description.adaptive else description.workers
    settings = {key: value for key, value in own_settings().items() if "log-format" not in key and "logging" not in key}
    spec: dict[str, Any] = operator.make_cluster_spec(
        name=f"teachonce-{secrets.token_hex(4)}",
        image=description.image,
        n_workers=first,
        resources={"requests": quantity, "limits": quantity},
        env=calm_waiting(shared=True)
        | WORKER_ENVIRONMENT
        | dask_variables(settings)
        | one_gpu
        | description.environment,
        worker_command=[
            "dask",
            "worker",
            *(word for name, value in options.items() for word in (OPTION + name, value)),
        ],
        idle_timeout=IDLE_SECONDS,
    )
    _of_scheduler(spec["spec"]["scheduler"]["spec"])
    _of_worker(spec["spec"]["worker"]["spec"], description)
    return spec


def _of_scheduler(pod: dict[str, Any]) -> None:
    """The scheduler needs no GPU and little of the rest."""
    for container in pod["containers"]:
        container["resources"] = SCHEDULER


def _of_worker(pod: dict[str, Any], description: KubernetesDescription) -> None:
    """What dask-kubernetes has no argument for."""
    volumes = list(description.volumes.items())
    pod["volumes"] = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, (_, claim) in enumerate(volumes)
    ]
    for container in pod["containers"]:
        container["volumeMounts"] = [
            {"name": f"volume-{number}", "mountPath": place} for number, (place, _) in enumerate(volumes)
        ]
        container["envFrom"] = [{"secretRef": {"name": name}} for name in description.secrets]
    if description.service_account is not None:
        pod["serviceAccountName"] = description.service_account
