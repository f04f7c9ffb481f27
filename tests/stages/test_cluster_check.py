"""cluster check: one job says what it has, and every difference that would end a run of days is found before it."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hand_cluster import by_hand, free_port, stand_in_slurm
from worlds import World

from teachonce import __version__
from teachonce.cluster.batch_description import LsfDescription, PbsDescription, SlurmDescription
from teachonce.cluster.description import ClusterSpec
from teachonce.core.machine import package_versions
from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.objects.folder import FolderObjects
from teachonce.objects.remote import location
from teachonce.stages.cluster_check import ClusterCheckRequest, WorkerLook, cluster_check, look, work

SLURM = """
kind = "slurm"
jobs = 3
cores = 1
memory = "8 GB"
walltime = "00:30:00"
interface = "lo"
"""
HERE = {"teachonce": __version__, **package_versions()}
SEEN = WorkerLook(
    host="node1",
    user="me",
    folder="/home/me",
    executable="/usr/bin/python3",
    versions=HERE,
    cores=8,
    cuda_visible_devices=None,
    gpus=(),
    memory_limit=8 << 30,
    memory_limit_by="SLURM",
    memory_used=2 << 30,
    data_mb_per_second=None,
    fsync_ms=None,
    findings=(),
)


def test_one_job_is_started_and_says_all(
    tmp_path: Path, world: World, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a description with three jobs one is started; nothing is left beside the store."""
    (tmp_path / "slurm.toml").write_text(SLURM)
    (tmp_path / "stores").mkdir()
    monkeypatch.chdir(tmp_path)
    with stand_in_slurm(tmp_path / "slurm") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        monkeypatch.setenv("SLURM_MEM_PER_NODE", "3000")
        result = cluster_check(
            ClusterCheckRequest(
                cluster=ClusterSpec(file=Path("slurm.toml")),
                labels=Path("stores/a.zarr"),
                root=world.root,
                models=(student,),
            ),
            Silent(),
        )
    assert (result.failures, result.exit_code) == (0, 0), [f for f in result.findings if f.standing == "FAIL"]
    assert [job.name for job in (tmp_path / "slurm").glob("*.sh")] == ["1.sh"]
    assert list((tmp_path / "stores").iterdir()) == []
    seen = result.worker
    assert seen is not None and seen.versions == HERE
    assert (seen.memory_limit, seen.memory_limit_by) == (3000 << 20, "SLURM") and seen.memory_used > 100 << 20
    assert seen.fsync_ms is not None and seen.fsync_ms > 0
    assert seen.data_mb_per_second is not None and seen.data_mb_per_second > 0
    said = {finding.what: finding.found for finding in result.findings}
    assert {"worker", "versions", "store", "disk", "locks", "data", "torch", "model", "memory", "gpu"} <= set(said)
    assert said["store"].startswith(str(tmp_path / "stores")) and said["data"].startswith(str(world.root))


@pytest.mark.slow  # another scheduler and worker of their own; the way to ask is that of the test above
def test_a_worker_of_a_running_scheduler_is_asked(tmp_path: Path) -> None:
    """It runs elsewhere and does not see the data: that is one FAIL, with its path, and exit 6."""
    with by_hand(tmp_path, free_port(), 1) as (address, _):
        result = cluster_check(
            ClusterCheckRequest(cluster=ClusterSpec(scheduler=address), root=tmp_path / "nothing"), Silent()
        )
    (failed,) = [finding for finding in result.findings if finding.standing == "FAIL"]
    assert failed.what == "data" and str(tmp_path / "nothing") in failed.found and result.exit_code == 6
    assert result.worker is not None and result.worker.folder == str(tmp_path)


def test_another_disk_under_the_same_path_is_no_shared_disk(tmp_path: Path) -> None:
    """A folder that is not there, and one that holds something else than the command wrote."""
    (missing,), nothing = look.store_disk(tmp_path / "trial", "word")
    assert missing.standing == "FAIL" and str(tmp_path) in missing.found and nothing is None
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / look.TOKEN).write_text("another")
    (other,), nothing = look.store_disk(tmp_path / "trial", "word")
    assert other.standing == "FAIL" and "something else" in other.found and nothing is None


def test_what_a_worker_writes_must_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SEEN_SECONDS", 0.0)
    wrote = dataclasses.replace(SEEN, fsync_ms=1.0)
    (lost,) = work._written_here(tmp_path, "word", wrote)
    assert lost.standing == "FAIL" and "node1" in lost.found
    (tmp_path / "node1").write_text("word")
    assert work._written_here(tmp_path, "word", wrote) == []


@pytest.mark.parametrize(
    ("package", "version", "standing"),
    [
        ("teachonce", "0.0.9", "FAIL"),
        ("python", "3.9.1", "FAIL"),
        ("zarr", "not installed", "FAIL"),
        ("timm", "1.0.1", "WARN"),
        ("timm", None, "OK"),
    ],
)
def test_versions_that_do_not_fit_are_named(package: str, version: str | None, standing: str) -> None:
    """Both versions, and the Python that has them."""
    other = HERE if version is None else {**HERE, package: version}
    (finding,) = work.versions(dataclasses.replace(SEEN, versions=other))
    assert finding.standing == standing and bool(finding.remedy) == (standing != "OK")
    if version is not None:
        assert f"{package} {version}, here {HERE[package]}" in finding.found and SEEN.executable in finding.found


@pytest.mark.parametrize(
    ("needed", "loaded", "used", "standing"),
    [
        (None, False, 2, "OK"),
        (None, True, 2, "OK"),
        (None, True, 6, "WARN"),
        (9 * 2**30, True, 2, "FAIL"),
        (7 * 2**30, True, 2, "OK"),
    ],
)
def test_a_limit_below_the_need_is_found(needed: float | None, loaded: bool, used: int, standing: str) -> None:
    """Of 8 GiB: against the plan where there is one, else against what the models take."""
    finding = work.memory(dataclasses.replace(SEEN, memory_used=used << 30), needed, loaded)
    assert finding.standing == standing and "8.6 GB by SLURM" in finding.found


def test_the_need_is_the_plans_share_of_one_worker(tmp_path: Path) -> None:
    """`plan` counts the command as one more; a plan without a measurement is refused."""
    plan = tmp_path / "plan.json"
    document: dict[str, Any] = {"workers": 3, "estimates": [{"what": "memory", "low": 1.0, "high": 8e9}]}
    plan.write_text(json.dumps(document))
    assert work.memory_of_a_worker(plan) == 2e9
    plan.write_text(json.dumps(document | {"estimates": []}))
    with pytest.raises(DataError, match="no plan with an estimate of memory"):
        work.memory_of_a_worker(plan)


def test_a_job_that_asks_for_a_gpu_and_has_none_fails() -> None:
    """In the words of each batch system; one that has its GPU, and one that asks for none, do not."""
    common: dict[str, Any] = {"cores": 1, "memory": "8 GB", "jobs": 1}
    for asks in (
        SlurmDescription(kind="slurm", walltime="01:00:00", gres="gpu:1", **common),
        SlurmDescription(kind="slurm", walltime="01:00:00", job_extra_directives=("--gpus=1",), **common),
        PbsDescription(kind="pbs", walltime="01:00:00", resource_spec="select=1:ngpus=1", **common),
        LsfDescription(kind="lsf", walltime="01:00", gpu="num=1", **common),
    ):
        assert [finding.standing for finding in work._gpu(SEEN, asks)] == ["FAIL"]
        seen = dataclasses.replace(SEEN, gpus=("H200, 139 GiB",), cuda_visible_devices="0")
        assert [finding.standing for finding in work._gpu(seen, asks)] == ["OK"]
    none = SlurmDescription(kind="slurm", walltime="01:00:00", **common)
    assert [finding.standing for finding in work._gpu(SEEN, none)] == ["OK"]


def test_what_cannot_be_tried_is_refused(tmp_path: Path) -> None:
    """No cluster, and a store whose folder is not there."""
    with pytest.raises(UsageError, match="no cluster to check"):
        cluster_check(ClusterCheckRequest(cluster=ClusterSpec()), Silent())
    (tmp_path / "slurm.toml").write_text(SLURM)
    spec = ClusterSpec(file=tmp_path / "slurm.toml")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        cluster_check(ClusterCheckRequest(cluster=spec, labels=tmp_path / "no/a.zarr"), Silent())


def test_a_store_in_a_bucket_is_tried_by_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that the command put there, an answer of the worker, and nothing left; a folder plays the bucket."""
    for module in (look, work):
        monkeypatch.setattr(module, "open_objects", lambda place: FolderObjects(tmp_path / place.name))
    labels = location("s3://stores/a.zarr")
    with work._trial_folder(labels) as (trial, token):
        assert trial is not None and str(trial).startswith("s3://stores/a.zarr.check-")
        (seen,), put_ms = look.store_bucket(trial, token)
        assert seen.standing == "OK" and "s3://stores" in seen.found and put_ms is not None
        here = dataclasses.replace(SEEN, host=socket.gethostname(), fsync_ms=put_ms)
        assert work._written_here(trial, token, here) == []
        (other,), nothing = look.store_bucket(trial, "another word")
        assert other.standing == "FAIL" and "another server" in other.found and nothing is None
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
