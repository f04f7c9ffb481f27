"""Batch jobs between their submission and the first sign of their worker: nothing hangs, and a person learns why.

SLURM is a stand-in here; `test_real_slurm.py` does the same with the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from hand_cluster import stand_in_slurm
from patience import seconds
from worlds import Notes

from teachonce.batch.job_guard import left_over
from teachonce.batch.job_queues import is_hopeless
from teachonce.batch.job_watch import AGAIN_KEY, LOOK_KEY, in_its_words
from teachonce.cluster.client import open_cluster, run_tasks, slurm_index
from teachonce.cluster.description import ClusterSpec, load_description
from teachonce.cluster.jobs import batch_cluster
from teachonce.cluster.workers import PATIENCE_KEY
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, IncompleteError

DESCRIPTION = """
kind = "slurm"
cores = 1
memory = "1 GB"
walltime = "00:30:00"
interface = "lo"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a stand-in for SLURM; the queue is looked at five times a second."""
    monkeypatch.chdir(tmp_path)
    quick = {LOOK_KEY: "200ms", AGAIN_KEY: "300ms", "distributed.deploy.lost-worker-timeout": "100ms"}
    with stand_in_slurm(tmp_path / "slurm") as variables, dask.config.set(quick), seconds(90):
        monkeypatch.setenv("PATH", variables["PATH"])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # workers import this module
        yield tmp_path / "slurm"


def spec(tmp_path: Path, *more: str, jobs: int = 1) -> ClusterSpec:
    """A description with further lines."""
    file = tmp_path / "slurm.toml"
    file.write_text("\n".join([DESCRIPTION, f"jobs = {jobs}", *more]))
    return ClusterSpec(file=file)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    while not condition():
        time.sleep(0.02)


def slowly(number: int) -> int:
    """A task."""
    time.sleep(0.1)
    return number


def test_a_run_bears_what_a_queue_does_to_its_jobs(slurm: Path, tmp_path: Path) -> None:
    """The first job ends before its worker joins, a later one is taken away while SLURM takes none: all tasks end."""
    notes = Notes()
    ready = tmp_path / "ready"
    with open_cluster(spec(tmp_path, f"job_script_prologue = ['test -e {ready}']"), notes) as client:
        results: list[int] = []
        ready.touch()  # too late for the first job
        until(lambda: (slurm / "1.log").exists() and "test -e" in (slurm / "1.log").read_text())
        for result in run_tasks(client, slowly, [(i,) for i in range(12)], "one", notes):
            results.append(result)
            if len(results) == 2:
                (slurm / "refusal").write_text("Job violates accounting/QOS policy")
                (slurm / "2.state").write_text("OUT_OF_MEMORY|None")
                os.killpg(int((slurm / "2.pid").read_text()), signal.SIGKILL)
                until(lambda: (slurm / "refused").exists() and len((slurm / "refused").read_text()) > 1)
                (slurm / "refusal").unlink()
    assert sorted(results) == list(range(12))
    early = [line for line in notes.lines if "job 1 ended before its worker joined: FAILED (NonZeroExitCode)" in line]
    assert len(early) == 1 and "a command failed with exit code 1: test -e" in early[0]
    assert len([line for line in notes.lines if "SLURM ended job 2: OUT_OF_MEMORY" in line]) == 1
    refused = [line for line in notes.lines if "takes no further job" in line]
    assert len(refused) == 1 and "Job violates accounting/QOS policy" in refused[0] and "trying again" in refused[0]
    assert not (slurm / "4.sh").exists(), "one job at a time, and no more than were needed"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["job_script_prologue = ['echo the module is not there >&2', 'sh -c \"exit 7\"']"], "exit code 7"),
        (["python = '/nowhere/python'"], "/nowhere/python"),
    ],
)
def test_jobs_that_all_end_at_once_end_the_run(more: list[str], words: str, slurm: Path, tmp_path: Path) -> None:
    """Exit 6 with the last lines of a job's log, after three jobs."""
    notes = Notes()
    with (
        pytest.raises(EnvironmentFault, match="3 jobs in a row ended before their worker joined") as caught,
        open_cluster(spec(tmp_path, *more), notes) as client,
    ):
        list(run_tasks(client, slowly, [(1,)], "one", notes))
    assert words in caught.value.message and "3.log" in caught.value.message
    assert "job_script_prologue" in caught.value.hint and caught.value.exit_code == 6
    assert not (slurm / "4.sh").exists()


def test_a_job_that_can_never_start_ends_the_run_and_one_that_waits_says_why(slurm: Path, tmp_path: Path) -> None:
    """Exit 6 at once in SLURM's words; exit 5 with the reason when patience is at its end; nothing stays queued."""
    (slurm / "waiting").write_text("PartitionTimeLimit")
    with (
        pytest.raises(EnvironmentFault, match=r"never start: PENDING \(PartitionTimeLimit\)") as caught,
        open_cluster(spec(tmp_path), Silent()) as client,
    ):
        list(run_tasks(client, slowly, [(1,)], "one"))
    assert "walltime" in caught.value.hint
    (slurm / "waiting").write_text("PartitionDown")
    with dask.config.set({PATIENCE_KEY: "4s"}), open_cluster(spec(tmp_path), Silent()) as client:
        with pytest.raises(IncompleteError, match=r"SLURM says: 1 job is PENDING \(PartitionDown\)"):
            list(run_tasks(client, slowly, [(1,)], "two"))
        (slurm / "2.state").write_text("RUNNING|None")
        with pytest.raises(IncompleteError, match="1 job is RUNNING; workers of jobs that run have not joined"):
            list(run_tasks(client, slowly, [(1,)], "three"))
        (slurm / "2.state").write_text("PENDING|PartitionDown")
    assert [(slurm / f"{number}.state").read_text() for number in (1, 2)] == ["CANCELLED|None"] * 2


def test_some_jobs_are_taken_and_others_are_not(slurm: Path, tmp_path: Path) -> None:
    """A limit of jobs in the queue ends nothing: the run goes on with those that were taken."""
    (slurm / "waiting").write_text("Priority")
    (slurm / "most").write_text("1")
    with (
        dask.config.set({PATIENCE_KEY: "4s"}),
        pytest.raises(IncompleteError, match=r"1 job is PENDING \(Priority\); no further job is taken: .*submit limit"),
        open_cluster(spec(tmp_path, jobs=2), Silent()) as client,
    ):
        list(run_tasks(client, slowly, [(1,)], "one"))


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        *((reason, True) for reason in ("BadConstraints", "PartitionTimeLimit", "InvalidQOS", "AccountNotAllowed")),
        *((reason, True) for reason in ("QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMinGRES")),
        *((reason, True) for reason in ("DependencyNeverSatisfied", "QOSMaxMemoryPerJob", "MaxMemPerLimit")),
        *((reason, False) for reason in ("Priority", "Resources", "PartitionDown", "PartitionInactive", "None", "")),
        *((reason, False) for reason in ("AssocGrpCpuLimit", "QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser")),
        *((reason, False) for reason in ("ReqNodeNotAvail, UnavailableNodes:vm", "JobHeldAdmin", "Reservation")),
    ],
)
def test_reasons_of_slurm_that_can_pass_and_that_cannot(reason: str, hopeless: bool) -> None:
    """A limit of the job itself stays; what others hold, or an administrator may open, can pass."""
    assert is_hopeless(reason) is hopeless


def test_words_of_a_refusal() -> None:
    """Those of sbatch, without what dask-jobqueue puts around them."""
    wrapped = "Command exited with non-zero exit code.\nstdout:\n\nstderr:\nsbatch: error: Invalid account\n\n"
    assert in_its_words(RuntimeError(wrapped)) == "sbatch: error: Invalid account"
    assert in_its_words(FileNotFoundError(2, "No such file", "sbatch")) == "[Errno 2] No such file: 'sbatch'"


DRIVER = """
import os, signal, sys
from teachonce.batch.job_guard import JobGuard
guard = JobGuard(["sh", "-c", 'echo "$0" >> cancelled'])
for job in ("11", "12", "13"):
    guard.begun(job)
guard.ended("12")
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
guard.ended("11")
guard.close()
"""


@pytest.mark.parametrize(("how", "cancelled"), [("killed", ["11", "13"]), ("in order", ["13"])])
def test_jobs_of_a_driver_that_is_gone_are_cancelled(how: str, cancelled: list[str], tmp_path: Path) -> None:
    """Also after kill -9, and only those that it had not closed itself."""
    subprocess.run([sys.executable, "-c", DRIVER, how], cwd=tmp_path, check=False)
    with seconds(30):
        until(lambda: (tmp_path / "cancelled").exists())
        until(lambda: (tmp_path / "cancelled").read_text().split() == cancelled)


def test_ctrl_c_means_what_it_meant_once_jobs_are_described() -> None:
    """dask-jobqueue sets a handler of its own when it is imported: Ctrl-C would end `teach` with exit code 0."""
    code = """
import signal
from teachonce.cluster.jobs import optional_package
optional_package("dask_jobqueue", "slurm", "slurm")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGINT)
"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        subprocess.run([sys.executable, "-c", code], check=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_lines_of_a_guard() -> None:
    """A job that ended is forgotten, whatever else is said."""
    assert left_over(["+1\n", "+2\n", "-1\n", "\n", "+\n", "-9\n"]) == ["2"]


PROLOGUE = """
module() { false; true; }
module load cuda
if false; then echo; fi
false || true
[ -n "" ] && echo
source ./sourced
export PLACE="two words"
"""


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("true", 0, ""),
        ("ls /nowhere-at-all", 2, "a command failed with exit code 2: ls /nowhere-at-all"),
        ("source ./fails", 1, "a command failed with exit code 1: source ./fails"),
    ],
)
def test_a_prologue_that_fails_stops_its_job(last: str, code: int, said: str, tmp_path: Path) -> None:
    """What fails inside a function or a sourced file stops nothing if that ends well; no worker starts otherwise."""
    (tmp_path / "sourced").write_text("false\ntrue\n")
    (tmp_path / "fails").write_text("true\nfalse\n")
    lines = [line for line in (PROLOGUE + last).splitlines() if line]
    file = spec(tmp_path, f"job_script_prologue = {lines!r}", "python = 'echo'").file
    assert file is not None
    with batch_cluster(load_description(file)) as cluster:  # type: ignore[arg-type]
        script = cluster.job_script()
    assert "#SBATCH --no-requeue" in script
    (tmp_path / "job.sh").write_text(script)
    ended = subprocess.run(["bash", "job.sh"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == code and said in ended.stderr
    assert ("distributed.cli.dask_worker" in ended.stdout) is (code == 0)


def test_who_wants_requeued_jobs_gets_them(tmp_path: Path) -> None:
    """`job_extra_directives` decide."""
    file = spec(tmp_path, 'job_extra_directives = ["--requeue"]').file
    assert file is not None
    with batch_cluster(load_description(file)) as cluster:  # type: ignore[arg-type]
        assert "no-requeue" not in cluster.job_script() and "#SBATCH --requeue" in cluster.job_script()


@pytest.mark.parametrize(
    ("variables", "index"),
    [
        ({}, None),
        ({"SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}, None),
        ({"SLURM_LOCALID": "2", "SLURM_STEP_NUM_TASKS": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2),
        ({"SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_GPUS": "2,3"}, 3),
        ({"SLURM_LOCALID": "0", "SLURM_JOB_GPUS": "3"}, 3),
        ({"SLURM_LOCALID": "0", "SLURM_JOB_GPUS": "3", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_jobs_that_share_a_node_take_a_gpu_each(variables: dict[str, str], index: int | None) -> None:
    """Tasks of a step by their numbers on the node, jobs by the GPUs that SLURM gave them."""
    assert slurm_index(variables) == index
