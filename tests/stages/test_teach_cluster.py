"""teach on workers that others started, and on a described cluster: the same store, to the last bit.

Workers run in another folder than the command and share with it only what lies under absolute paths.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds
from hand_cluster import by_hand, free_port, stand_in_slurm
from worlds import CHUNKS, PHOTOS, World, all_arrays, request_for

from teachonce.cluster.description import ClusterSpec
from teachonce.core.progress import Silent
from teachonce.errors import DataError, EnvironmentFault
from teachonce.labels.store import LabelStore
from teachonce.stages.teach import teach

# Loaded by a worker: what the file HIDDEN names does not exist for it, as a disk that only the driver has.
BLIND = """
import os, pathlib

def blind(path, *args, plain=os.stat, **options):  # Dask imports this file twice
    hidden = pathlib.Path(os.environ["HIDDEN"]).read_text()
    if isinstance(path, (str, os.PathLike)) and (str(path) + "/").startswith(hidden + "/"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return plain(path, *args, **options)

os.stat = blind
"""


@contextmanager
def running(
    where: Path, world: World, teacher: str, student: str, *where_it_runs: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`teachonce teach` as a person types it in the folder `where`, with every path relative."""
    near = {spec: f"local-dir:{os.path.relpath(spec.partition(':')[2], where)}" for spec in (teacher, student)}
    root = os.path.relpath(world.root, where)
    command = [
        sys.executable,
        "-m",
        "teachonce",
        "teach",
        f"{root}/wds.toml",
        "--root",
        root,
        "--teacher",
        near[teacher],
        "--student",
        near[student],
        "--labels",
        "out/a.zarr",
        "--top-k",
        "5",
        "--chunk-rows",
        str(worlds.CHUNK_ROWS),
        "--set",
        "batch_size=4",
        "--set",
        "threads=1",
        "--json",
        *where_it_runs,
    ]
    with subprocess.Popen(
        command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    """What it says at its end."""
    out, problem = process.communicate(timeout=300)
    assert process.returncode == 0, problem[-3000:]
    result: dict[str, object] = json.loads(out)
    return result


def require_equal(store: Path, other: Path) -> None:
    """The same id and the same bits."""
    assert LabelStore.open(store).store_id() == LabelStore.open(other).store_id()
    arrays, wanted = all_arrays(store), all_arrays(other)
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[name], wanted[name], equal_nan=wanted[name].dtype.kind == "f") for name in wanted)


def committed(store: Path) -> int:
    """How many chunks of labels have their record on disk."""
    return len(list(store.glob("ledger/labels/c/*/0")))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of the command and that of the workers."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    return here, there


@pytest.mark.slow  # a scheduler and two workers start; a local cluster is in CI
def test_workers_started_by_hand_in_another_folder(
    world: World, teacher: str, student: str, finished: Path, places: tuple[Path, Path]
) -> None:
    """Relative paths of data, store and models are the command's; the store equals one made without a cluster."""
    here, there = places
    with (
        by_hand(there, free_port(), 2) as (address, _),
        running(here, world, teacher, student, "--scheduler", address) as process,
    ):
        result = result_of(process)
    assert (result["rows_ok"], result["chunks_written"]) == (PHOTOS, CHUNKS)
    require_equal(here / "out/a.zarr", finished)
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a.zarr"], "no staging, no lock is left"
    assert not [path for path in there.iterdir() if path.name != "dask-scratch-space"], "nothing in the workers' folder"


@pytest.mark.slow  # waits for Dask's own clock; a worker that is lost is in `tests/cluster`, in CI
def test_a_described_cluster_that_grows_with_the_work(
    world: World, teacher: str, student: str, finished: Path, places: tuple[Path, Path]
) -> None:
    """`--cluster` with kind local and adaptive: none to begin with, then workers as there is work."""
    (places[0] / "here.toml").write_text('kind = "local"\nadaptive = {minimum = 0, maximum = 2}\n')
    with running(places[0], world, teacher, student, "--cluster", "here.toml") as process:
        result = result_of(process)
    assert (result["rows_ok"], result["chunks_written"]) == (PHOTOS, CHUNKS)
    require_equal(places[0] / "out/a.zarr", finished)


SLURM = """
kind = "slurm"
jobs = 1
cores = 1
memory = "4 GB"
walltime = "00:30:00"
account = "lab"
interface = "lo"
log_directory = "logs"
"""


@pytest.mark.slow
def test_slurm_jobs_that_are_taken_away(
    world: World, teacher: str, student: str, finished: Path, places: tuple[Path, Path], tmp_path: Path
) -> None:
    """`--cluster` with kind slurm, on a stand-in for sbatch: a job that is killed is replaced; the store is whole."""
    (places[0] / "slurm.toml").write_text(SLURM)
    soon = {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
    with (
        stand_in_slurm(tmp_path / "slurm") as variables,
        running(places[0], world, teacher, student, "--cluster", "slurm.toml", **variables, **soon) as process,
    ):
        # The job must have reached the scheduler: Dask replaces what it has lost, not what never came.
        while not committed(places[0] / "out/a.zarr") and process.poll() is None:
            time.sleep(0.01)
        os.killpg(int((tmp_path / "slurm/1.pid").read_text()), signal.SIGKILL)
        result = result_of(process)
    assert (result["rows_ok"], result["chunks_written"]) == (PHOTOS, CHUNKS)
    require_equal(places[0] / "out/a.zarr", finished)
    assert "#SBATCH -A lab" in (tmp_path / "slurm/1.sh").read_text() and (tmp_path / "slurm/2.sh").exists()


@pytest.fixture(scope="module")
def blind_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A scheduler with one worker, and the file that says what this worker does not see."""
    folder = tmp_path_factory.mktemp("blind")
    (folder / "blind.py").write_text(BLIND)
    hidden = folder / "hidden"
    hidden.write_text("/nothing")
    with by_hand(folder, free_port(), 1, ("--preload", "blind.py"), {"HIDDEN": str(hidden)}) as (address, _):
        yield address, hidden


def test_data_that_are_not_there_are_said_before_a_job_is_asked_for(world: World, teacher: str, tmp_path: Path) -> None:
    """A folder without any archive of the split would be noticed when the first job runs, hours later in a queue."""
    (tmp_path / "empty").mkdir()
    shutil.copy(world.root / "classes.tsv", tmp_path / "empty")
    (tmp_path / "slurm.toml").write_text(
        'kind = "slurm"\njobs = 1\ncores = 1\nmemory = "1 GB"\nwalltime = "01:00:00"\n'
    )
    request = replace(
        request_for(world, tmp_path / "a.zarr", teacher, root=tmp_path / "empty"),
        cluster=ClusterSpec(file=tmp_path / "slurm.toml"),
    )
    with pytest.raises(DataError, match="no archive matches"):
        teach(request, Silent())
    assert not (tmp_path / "a.zarr.lock").exists()


@pytest.mark.slow  # a scheduler and a worker start for each disk
@pytest.mark.parametrize("what", ["data", "label store", "model"])
def test_a_worker_that_lacks_a_disk(
    what: str, blind_worker: tuple[str, Path], world: World, teacher: str, tmp_path: Path
) -> None:
    """Exit 6 that says what is not seen and where; nothing hangs, and nothing is committed."""
    address, hidden = blind_worker
    store = tmp_path / "a.zarr"
    path = {"data": str(world.root), "label store": str(store), "model": teacher.partition(":")[2]}[what]
    hidden.write_text(path)
    with pytest.raises(EnvironmentFault, match=f"the worker on .* does not see the {what}") as caught:
        teach(request_for(world, store, teacher, top_k=5, scheduler=address), Silent())
    assert path in caught.value.message and "shared disk" in caught.value.hint
    assert LabelStore.open(store).committed("labels") == []
