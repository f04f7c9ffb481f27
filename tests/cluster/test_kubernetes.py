"""Pods of a Kubernetes cluster: what the operator is asked for, and that the work is done there.

The package is replaced by a stand-in that starts the worker of the asked-for spec as a process right here.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from worlds import Notes

from teachonce.cluster.client import open_cluster, run_tasks, runs_here, threads_of
from teachonce.cluster.description import ClusterSpec, load_description, one_worker
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, UsageError

PODS = """
kind = "kubernetes"
image = "registry.example.org/lab/teachonce:0.1"
workers = 1
cores = 8
memory = "48 GB"
gpus = 1
namespace = "lab"
volumes = {"/data" = "images", "/stores" = "labels"}
secrets = ["s3-reader"]
service_account = "teacher"
environment = {HF_HOME = "/data/hf"}
"""


def make_cluster_spec(name: str, **asked: Any) -> dict[str, Any]:
    """As dask-kubernetes makes it, so far as it is used here."""
    env = [{"name": key, "value": value} for key, value in asked["env"].items()]
    container = {"image": asked["image"], "env": env, "resources": asked["resources"]}
    worker = {**container, "args": [*asked["worker_command"], "--name", "$(DASK_WORKER_NAME)"]}
    return {
        "metadata": {"name": name},
        "spec": {
            "idleTimeout": asked["idle_timeout"],
            "worker": {"replicas": asked["n_workers"], "spec": {"containers": [worker]}},
            "scheduler": {"spec": {"containers": [{**container, "args": ["dask-scheduler"]}]}},
        },
    }


class Pods(LocalCluster):
    """A cluster whose workers are processes of this machine, with the variables of the pods."""

    asked: dict[str, Any] = {}  # noqa: RUF012 - of the last one that was made
    bounds: tuple[int, int] | None = None
    problem: Exception | None = None

    def __init__(self, **asked: Any) -> None:
        Pods.asked, Pods.bounds = asked, None
        if self.problem is not None:
            raise self.problem
        worker = asked["custom_cluster_spec"]["spec"]["worker"]
        (container,) = worker["spec"]["containers"]
        threads = int(container["args"][container["args"].index("--nthreads") + 1])
        env = {one["name"]: one["value"] for one in container["env"]}
        super().__init__(
            n_workers=worker["replicas"], threads_per_worker=threads, env=env, dashboard_address="127.0.0.1:0"
        )

    def adapt(self, minimum: int, maximum: int) -> None:  # type: ignore[override]
        Pods.bounds = (minimum, maximum)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """dask-kubernetes, as far as it is used."""
    module = types.ModuleType("dask_kubernetes.operator")
    vars(module).update(KubeCluster=Pods, make_cluster_spec=make_cluster_spec)
    monkeypatch.setitem(sys.modules, "dask_kubernetes", types.ModuleType("dask_kubernetes"))
    monkeypatch.setitem(sys.modules, "dask_kubernetes.operator", module)
    monkeypatch.setattr(Pods, "problem", None)


def written(folder: Path, text: str = PODS) -> ClusterSpec:
    """The choice of a description with this text."""
    (folder / "pods.toml").write_text(text)
    return ClusterSpec(file=folder / "pods.toml")


@pytest.mark.usefixtures("operator")
def test_pods_do_the_work_and_are_asked_for_as_described(tmp_path: Path) -> None:
    """A result, the environment in the worker, one GPU and the volumes in its pod, no GPU in the scheduler's."""
    spec, notes = written(tmp_path), Notes()
    assert threads_of(spec) == 8 and not runs_here(spec)
    with open_cluster(spec, notes) as client:
        assert list(run_tasks(client, sum, [([1, 2],)], "sums")) == [3]
        for name, value in (("HF_HOME", "/data/hf"), ("CUDA_VISIBLE_DEVICES", "0"), ("MALLOC_ARENA_MAX", "1")):
            assert list(client.run(os.getenv, name).values()) == [value]
    asked = Pods.asked
    assert asked["namespace"] == "lab" and asked["resource_timeout"] == 600 and asked["shutdown_on_close"]
    document = asked["custom_cluster_spec"]
    worker, scheduler = (document["spec"][role]["spec"] for role in ("worker", "scheduler"))
    (container,), (other,) = worker["containers"], scheduler["containers"]
    wanted = {"cpu": "8", "memory": "48G", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    assert "nvidia.com/gpu" not in str(other["resources"])
    claims = {one["name"]: one["persistentVolumeClaim"]["claimName"] for one in worker["volumes"]}
    assert {one["mountPath"]: claims[one["name"]] for one in container["volumeMounts"]} == {
        "/data": "images",
        "/stores": "labels",
    }
    assert container["envFrom"] == [{"secretRef": {"name": "s3-reader"}}]
    assert worker["serviceAccountName"] == "teacher"
    assert "Kubernetes" in notes.lines[0]


@pytest.mark.usefixtures("operator")
def test_the_number_of_pods_may_follow_the_work(tmp_path: Path) -> None:
    adaptive = written(tmp_path, PODS.replace("workers = 1", "adaptive = {minimum = 0, maximum = 6}"))
    with open_cluster(adaptive, Silent()):
        assert Pods.bounds == (0, 6)


@pytest.mark.usefixtures("operator")
def test_a_cluster_that_does_not_start_is_exit_6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of the package, whatever kind of error it has."""

    class KubernetesError(Exception):
        pass

    monkeypatch.setattr(Pods, "problem", KubernetesError("daskclusters.kubernetes.dask.org is forbidden"))
    with (
        pytest.raises(EnvironmentFault, match="could not be started: KubernetesError: .* is forbidden") as caught,
        open_cluster(written(tmp_path), Silent()),
    ):
        pass
    assert "kubectl" in caught.value.hint


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_kubernetes", None)
    monkeypatch.delitem(sys.modules, "dask_kubernetes.operator", raising=False)
    with (
        pytest.raises(EnvironmentFault, match="needs the package dask-kubernetes") as caught,
        open_cluster(written(tmp_path), Silent()),
    ):
        pass
    assert "teachonce[kubernetes]" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gpus = 1", "gpus = 2"), "gpus must be 0 or 1"),
        (('"48 GB"', '"much"'), "memory must be a size"),
        (('"/data" =', '"data" ='), "absolute path"),
        (('"labels"', '"La bels"'), "no name in Kubernetes"),
        (('"lab"', '"lab; rm"'), "no name in Kubernetes"),
        (("workers = 1", ""), "give 'workers' or 'adaptive'"),
        (("cores = 8", "cores = 0"), "cores must be at least 1"),
        (("lab/teachonce:0.1", "lab teachonce"), "image must be"),
        (("HF_HOME", "AWS_SECRET_ACCESS_KEY"), "secret"),
    ],
)
def test_a_mistake_in_a_description_of_pods_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    spec = written(tmp_path, PODS.replace(*change))
    assert spec.file is not None
    with pytest.raises(UsageError, match=message):
        load_description(spec.file)


def test_one_pod_of_a_description(tmp_path: Path) -> None:
    """For a look at the cluster, whatever number is described; sizes in the words of Kubernetes."""
    for text in (PODS.replace("workers = 1", "workers = 9"), PODS.replace("workers = 1", "adaptive = {maximum = 9}")):
        spec = written(tmp_path, text.replace("48 GB", "1.5TiB"))
        assert spec.file is not None
        described: Any = load_description(spec.file)
        assert described.most_workers == 9 and described.memory_quantity() == "1.5Ti"
        one: Any = one_worker(described)
        assert (one.workers, one.adaptive, one.image) == (1, None, described.image)
