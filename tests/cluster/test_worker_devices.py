"""Which GPU a worker takes, how workers share cores, and what becomes of a device that fails in one of them."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import torch
from distributed import Nanny, Scheduler, SpecCluster

from teachonce.cluster import client as cluster_client
from teachonce.cluster.client import local_cluster, own_settings, run_tasks, threads_of, worker_index, worker_threads
from teachonce.cluster.description import ClusterSpec
from teachonce.core.devices import DeviceFacts, DeviceFault, device_facts


def turned(number: int, gpus: int) -> str:
    """CUDA_VISIBLE_DEVICES of the n-th worker of dask-cuda, as its `cuda_visible_devices` documents it."""
    every = [str(gpu) for gpu in range(gpus)]
    return ",".join(every[number:] + every[:number])


def own_gpu() -> str:
    """The physical GPU that this worker takes."""
    visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    return visible[worker_index() % len(visible)]


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_workers_of_dask_cuda_take_a_gpu_each(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """dask-cuda turns the list so that a worker's own GPU is the first in it; names count the workers."""
    monkeypatch.setitem(sys.modules, "dask_cuda", types.ModuleType("dask_cuda"))
    taken = []
    for number in range(gpus):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", turned(number, gpus))
        monkeypatch.setattr(distributed, "get_worker", lambda number=number: types.SimpleNamespace(name=number))
        taken.append(own_gpu())
    assert taken == [str(gpu) for gpu in range(gpus)]


@pytest.mark.parametrize("gpus", [2, 4])
def test_workers_of_this_machine_take_a_gpu_each(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dask-cuda all workers see the same list, and their names count."""
    monkeypatch.delitem(sys.modules, "dask_cuda", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", turned(0, gpus))
    taken = []
    for number in range(gpus):
        monkeypatch.setattr(distributed, "get_worker", lambda number=number: types.SimpleNamespace(name=number))
        taken.append(own_gpu())
    assert taken == [str(gpu) for gpu in range(gpus)]


def test_the_package_itself_turns_the_list_so() -> None:
    """Where it is installed, the rotation that these tests assume is the one it has."""
    utils = pytest.importorskip("dask_cuda.utils", reason="dask-cuda is not installed")
    assert [utils.cuda_visible_devices(i, range(4)) for i in range(4)] == [turned(i, 4) for i in range(4)]


def test_real_workers_with_turned_lists_take_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's own worker processes, started as dask-cuda starts them: a variable each, and its module loaded first."""
    (tmp_path / "dask_cuda").mkdir()
    for name in ("__init__", "initialize"):
        (tmp_path / "dask_cuda" / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)  # processes that Dask spawns look where this one does

    def spec(number: int) -> dict[str, Any]:
        options = {
            "env": {"CUDA_VISIBLE_DEVICES": turned(number, 2)},
            "preload": ["dask_cuda.initialize"],
            "nthreads": 1,
            "dashboard": False,
        }
        return {"cls": Nanny, "options": options | {"memory_limit": 0}}

    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0, "host": "127.0.0.1"}}
    with (
        dask.config.set(own_settings()),
        SpecCluster(workers={n: spec(n) for n in range(2)}, scheduler=scheduler, silence_logs=50) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        assert sorted(client.run(own_gpu).values()) == ["0", "1"]


def test_workers_of_dask_cuda_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share for each GPU, whether the description names them or the machine has them."""
    monkeypatch.setattr(cluster_client, "default_threads", lambda workers: 48 // workers)
    monkeypatch.setattr(cluster_client, "visible_gpus", lambda: 8)
    file = tmp_path / "c.toml"
    for text, threads in (('kind = "cuda"', 6), ('kind = "cuda"\ndevices = [0, 3, 5]', 16)):
        file.write_text(text)
        assert threads_of(ClusterSpec(file=file)) == threads


def test_a_number_that_dask_set_is_nobodys_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nannies set OMP_NUM_THREADS=1: a foreign worker with 8 cores would decode with one."""
    monkeypatch.setattr("teachonce.core.machine.allowed_cores", lambda: 8)
    monkeypatch.setattr("teachonce.core.machine.cpu_quota", lambda: None)
    monkeypatch.setattr("teachonce.core.machine.busy_cores", lambda: 0.0)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}}):
        for value, threads in (("1", 8), ("3", 3)):
            monkeypatch.setenv("OMP_NUM_THREADS", value)
            assert worker_threads() == threads


def waiting() -> str | None:
    """How idle threads of a worker wait."""
    return os.environ.get("OMP_WAIT_POLICY")


def full(number: int) -> int:
    """A task on a GPU without room."""
    raise torch.OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {number}.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 "
        "GiB is free."
    )


def lost(number: int) -> int:
    """A task whose GPU has gone."""
    raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable", 46)


def test_a_device_that_fails_in_a_worker_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6 with the numbers, without further tries: the device would fail again. Workers' idle threads sleep."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    with local_cluster(1, threads=1) as client:
        for task, words in ((full, "2.0 GiB more were needed, 1.0 GiB of 8.0 GiB"), (lost, "busy")):
            with pytest.raises(DeviceFault, match=words) as caught:
                list(run_tasks(client, task, [(2,)], task.__name__))
            assert caught.value.exit_code == 6
        assert set(client.run(waiting).values()) == {"PASSIVE"}
        assert client.submit(device_facts).result(timeout=60) == DeviceFacts(device="cpu", bf16=False)
