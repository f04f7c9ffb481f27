"""Where workers come from: descriptions read strictly, the job script that SLURM would get, an existing scheduler."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed.comm import CommClosedError
from hand_cluster import by_hand, free_port, stand_in_slurm
from worlds import Notes

from teachonce.cluster.client import (
    close,
    local_cluster,
    open_cluster,
    own_settings,
    run_tasks,
    threads_of,
    warm_up,
    worker_index,
)
from teachonce.cluster.description import BRIEF_MEMORY, KINDS, ClusterSpec, CudaDescription, load_description
from teachonce.cluster.jobs import batch_cluster, cuda_cluster, started
from teachonce.core.machine import default_threads
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, IncompleteError, UsageError

SLURM = """
kind = "slurm"
cores = 8
memory = "64 GB"
walltime = "04:00:00"
jobs = 4
queue = "gpu"
account = "lab"
gres = "gpu:1"
job_script_prologue = ["module load cuda"]
environment = {HF_HOME = "/data/hf"}
interface = "lo"
"""


def description(tmp_path: Path, text: str) -> Any:
    """What a file with this text describes."""
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return load_description(path)


def test_the_job_script_is_what_slurm_needs(tmp_path: Path) -> None:
    """One GPU and one process a job, two task threads, the allocator's settings, and a life shorter than the job's."""
    wanted = description(tmp_path, SLURM)
    with batch_cluster(wanted) as cluster:
        script = cluster.job_script()
    asked = ["-p gpu", "-A lab", "--gres=gpu:1", "--cpus-per-task=8", "-t 04:00:00"]
    prologue = ["export MALLOC_MMAP_MAX_=0", "export HF_HOME=/data/hf", "module load cuda"]
    for line in [f"#SBATCH {directive}" for directive in asked] + prologue:
        assert line in script.splitlines(), line
    words = script.splitlines()[-1].split()
    value = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
    assert value["--nthreads"] == "2" and value["--memory-limit"] == "0", "the last one counts"
    lifetime, stagger = int(value["--lifetime"][:-1]), int(value["--lifetime-stagger"][:-1])
    assert stagger > 0 and lifetime + stagger < 4 * 3600
    assert "--nworkers" not in value or value["--nworkers"] == "1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("walltime", "wall_time"), "did you mean 'walltime'"),
        (('kind = "slurm"', 'kind = "slurmy"'), "'slurm'"),
        (('"04:00:00"', '"4 hours"'), "walltime"),
        (("jobs = 4", "jobs = 0"), "jobs must be at least 1"),
        (("jobs = 4", "adaptive = {minimum = 3, maximum = 2}"), "minimum"),
        (('HF_HOME = "/data/hf"', 'AWS_SECRET_ACCESS_KEY = "x"'), "secret"),
        (("jobs = 4", 'jobs = 4\nlifetime = "5h"'), "leave before SLURM ends it"),
    ],
)
def test_a_description_with_a_mistake_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    """Exit 2 that names the file and what is wrong; no package is imported for it."""
    with pytest.raises(UsageError, match=message) as caught:
        description(tmp_path, SLURM.replace(*change))
    assert "cluster.toml" in str(caught.value)


def test_adaptive_jobs_follow_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adaptive` asks dask-jobqueue for between so many jobs, and `jobs` for always so many; the first at once."""
    wanted = description(tmp_path, SLURM.replace("jobs = 4", "adaptive = {minimum = 0, maximum = 3}"))
    fixed = description(tmp_path, SLURM.replace("jobs = 4", "jobs = 2"))
    notes = Notes()
    with stand_in_slurm(tmp_path / "slurm") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        with started(wanted, notes) as cluster:
            assert (cluster._adaptive.minimum, cluster._adaptive.maximum) == (0, 3)
            assert (tmp_path / "slurm/1.sh").exists() and not (tmp_path / "slurm/2.sh").exists()
        with started(fixed, notes) as cluster:
            assert (cluster._adaptive.minimum, cluster._adaptive.maximum) == (2, 2)
            assert (tmp_path / "slurm/3.sh").exists()
    assert "SLURM" in notes.lines[0]


def test_slurm_refuses_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 6 with SLURM's own words; also where there is no sbatch."""
    wanted = description(tmp_path, SLURM.replace('"lab"', '"nobody"'))
    with stand_in_slurm(tmp_path / "slurm") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        with pytest.raises(EnvironmentFault, match="Invalid account") as caught, started(wanted, Silent()):
            pass
    assert "account" in caught.value.hint
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvironmentFault, match="sbatch"), started(wanted, Silent()):
        pass


def test_gpus_of_one_machine_by_dask_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker a GPU with our threads and environment; without the package the extra is named."""
    wanted = CudaDescription(kind="cuda", devices=(0, 2), environment={"A": "1"})
    with pytest.raises(EnvironmentFault, match="needs the package dask-cuda") as caught:
        cuda_cluster(wanted)
    assert "teachonce[cuda]" in caught.value.hint
    asked: dict[str, Any] = {}

    def cluster(**options: Any) -> str:
        import dask

        asked.update(options, environment=dict(dask.config.get("distributed.nanny.pre-spawn-environ")))
        return "cluster"

    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cluster))
    assert cuda_cluster(wanted) == "cluster"
    assert asked["CUDA_VISIBLE_DEVICES"] == [0, 2] and asked["threads_per_worker"] == 2
    assert asked["environment"]["A"] == "1" and asked["environment"]["MALLOC_ARENA_MAX"] == "1"


WORDS = {"A": "two words", "B": "$(echo ran) `echo ran`", "C": "it's; D=2", "E": "a\nb", "HF_HOME": "/data/hf"}


def test_variables_of_a_job_reach_its_worker_as_they_were_written(tmp_path: Path) -> None:
    """A shell reads the script's own lines: words stay together, and nothing in a value runs."""
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in WORDS.items())
    wanted = description(tmp_path, re.sub("environment = .*", lambda _: f"environment = {{{table}}}", SLURM))
    with batch_cluster(wanted) as cluster:
        script = cluster.job_script()
    exports = script[script.index("export ") : script.index("module load")]
    shown = "; ".join(f'printf "%s\\0" "${name}"' for name in WORDS)
    said = subprocess.run(["bash", "-c", f"{exports}\n{shown}"], capture_output=True, text=True, check=True).stdout
    assert said.split("\0")[:-1] == list(WORDS.values())
    assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in script


@pytest.mark.parametrize(
    "line",
    [
        'queue = "gpu\\n#SBATCH --uid=0"',
        'account = "a\\nrm -rf x"',
        'gres = "gpu:1\\n"',
        'job_extra_directives = ["a\\nb"]',
        'interface = "lo; rm x"',
        'python = "python $(rm x)"',
        'local_directory = "/tmp & rm x"',
        'environment = {"A=1; rm x" = "b"}',
        'environment = {A = "a\\u0000"}',
    ],
)
def test_a_description_adds_commands_in_one_place_only(line: str, tmp_path: Path) -> None:
    key = line.partition(" ")[0]
    with pytest.raises(UsageError, match=key):
        description(tmp_path, re.sub(f"(?m)^{key} = .*\n", "", SLURM) + line + "\n")


def test_what_dask_remembers_is_kept_short() -> None:
    """Its profiler keeps 100 kB a second, its logs go on growing for hours; all settings are names that Dask has."""
    known = dask.config.config
    with dask.config.set(own_settings()):
        assert dask.config.get("distributed.worker.profile.enabled") is False
    for key in BRIEF_MEMORY:
        assert dask.config.get(key, config=known) is not None, key


def resident() -> int:
    """Bytes of memory of the calling process."""
    return int(psutil.Process().memory_info().rss)


def small(number: int) -> int:
    """A task that leaves nothing behind."""
    return number


@pytest.mark.slow  # minutes: what grows shows itself beside noise only after thousands of tasks
def test_driver_and_workers_stay_flat_over_as_many_tasks_as_hours_of_teaching() -> None:
    """After the first quarter neither takes 5 MB more; with Dask's own settings a worker takes 100 kB a second."""
    with local_cluster(2) as client:
        sizes = []
        for part in range(4):
            assert sum(1 for _ in run_tasks(client, small, [(i,) for i in range(1500)], f"part{part}")) == 1500
            time.sleep(10)
            sizes.append([resident(), *client.run(resident).values()])
    growth = [(last - first) / 1e6 for first, last in zip(sizes[0], sizes[-1], strict=True)]
    assert max(growth) < 5, growth


def test_descriptions_of_the_page(project: Path, tmp_path: Path) -> None:
    """Every TOML block of docs/cluster.md is a description, one at least of each kind."""
    page = (project / "docs/cluster.md").read_text(encoding="utf-8")
    descriptions = [description(tmp_path, block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]
    assert {one.kind for one in descriptions} == set(KINDS)


def test_threads_of_a_worker(tmp_path: Path) -> None:
    """A share of this machine, the cores of a SLURM job, and whatever a foreign worker finds."""
    assert threads_of(ClusterSpec(workers=1)) == default_threads(1)
    assert threads_of(ClusterSpec(scheduler="tcp://h:8786")) is None
    (tmp_path / "c.toml").write_text(SLURM)
    assert threads_of(ClusterSpec(file=tmp_path / "c.toml")) == 8
    assert worker_index() == 0, "outside Dask"


def slowly(number: int) -> tuple[int, int]:
    """A task: the number back, and which worker it was."""
    time.sleep(0.2)
    return number, worker_index()


def test_an_existing_scheduler_loses_a_worker_and_then_itself(tmp_path: Path) -> None:
    """All results come although a worker dies with tasks queued; when the scheduler dies the run ends with exit 5."""
    with (
        by_hand(tmp_path, free_port(), 2) as (address, processes),
        pytest.raises(IncompleteError, match="was lost: it ended, or the network did"),
        open_cluster(ClusterSpec(scheduler=address), Silent()) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        results = []
        for number, worker in run_tasks(client, slowly, [(i,) for i in range(24)], "one"):
            results.append((number, worker))
            if len({worker for _, worker in results}) == 2:
                processes[1].kill()
        assert sorted(number for number, _ in results) == list(range(24))
        assert {worker for _, worker in results} == {0, 1}, "the number at the end of a worker's name"
        began = time.monotonic()
        with pytest.raises(IncompleteError, match="scheduler") as caught:
            for _ in run_tasks(client, slowly, [(i,) for i in range(200)], "two"):
                processes[0].kill()
        assert time.monotonic() - began < 60 and "run the same command again" in caught.value.hint
        raise CommClosedError("in <TCP ConnectionPool.ncores>: so a look at the workers ends at such an instant")


def test_ctrl_c_is_the_drivers_to_act_on() -> None:
    """A terminal sends it to the workers as well: they go on, and take tasks, until the driver closes them."""

    def ctrl_c() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with open_cluster(ClusterSpec(workers=1), Silent()) as client:
        before = client.run(os.getpid)
        client.run(ctrl_c)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        assert client.run(os.getpid) == before, "the same process"


@pytest.mark.slow
def test_tasks_begin_in_their_order() -> None:
    """Also those that wait while a worker is busy with something else, as when it imports what it needs."""

    def begun(number: int) -> tuple[float, int]:
        at = time.monotonic()
        time.sleep(0.02)
        return at, number

    with open_cluster(ClusterSpec(workers=2), Silent(), threads=1) as client:
        warm = warm_up(client, lambda: time.sleep(2))
        results = sorted(run_tasks(client, begun, [(number,) for number in range(12)], "order"))
        del warm
    order = [number for _, number in results]
    assert all(abs(number - place) <= 1 for place, number in enumerate(order)), order


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where no scheduler is: exit 6, and soon."""
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        pytest.raises(EnvironmentFault, match="nothing answers as a Dask scheduler at tcp://127.0.0.1"),
        open_cluster(ClusterSpec(scheduler=f"tcp://127.0.0.1:{free_port()}"), Silent()),
    ):
        pass


class Slow:
    """A client or cluster that does not end in time."""

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def close(self, timeout: float) -> None:
        """Fail as Dask does."""
        raise self._problem


@pytest.mark.parametrize("problem", [TimeoutError(), OSError("closed"), RuntimeError("loop is closed")])
def test_what_does_not_end_in_time_is_noted_and_not_raised(problem: Exception) -> None:
    """The work is done by then, or has an error of its own, which must not be replaced."""
    notes = Notes()
    close(Slow(problem), "the local workers", notes)
    assert len(notes.lines) == 1 and "the local workers did not end" in notes.lines[0]
