"""Faults of a real SLURM in the middle of `teach`: each ends in the store of a run that nothing disturbed, or says why.

For one SLURM of one node whose administrator runs the tests: they drain the node, set it down and restart the
controller. TEACHONCE_TRIAL_NODE names the node, and TEACHONCE_TRIAL_RESTART a command that stops the controller when it
is called with `stop` and starts it with `start`. The node offers GPUs (`gres`) and the partitions gpu, closed (DOWN)
and short (at most 10 minutes). Photos and models are the real ones beside the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from teachonce.labels.store import LabelStore

SHARED = Path(__file__).resolve().parents[3] / "shared"
NODE = os.environ.get("TEACHONCE_TRIAL_NODE", "")
RESTART = os.environ.get("TEACHONCE_TRIAL_RESTART", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="the photos and models are not beside the checkout"),
    pytest.mark.skipif(
        not (NODE and RESTART and shutil.which("sbatch")), reason="there is no SLURM that may be disturbed"
    ),
]
DESCRIPTION = """
kind = "slurm"
jobs = 2
cores = 2
memory = "4 GB"
walltime = "00:30:00"
queue = "gpu"
gres = "gpu:1"
interface = "lo"
log_directory = "logs"
patience = "5 minutes"
job_extra_directives = ["--job-name={name}"]
"""
QUICK = {"DASK_TEACHONCE__LOOK_AT_QUEUE_EVERY": "3s", "DASK_TEACHONCE__SUBMIT_AGAIN_AFTER": "10s"}
BROKEN_SBATCH = """#!/bin/sh
if [ -e {flag} ]; then echo "sbatch: error: Slurm temporarily unable to accept job" >&2; exit 1; fi
exec {sbatch} "$@"
"""


def teach_command(store: str, *more: str) -> list[str]:
    """480 photos in 60 chunks."""
    models = SHARED / "models"
    return [
        *(sys.executable, "-m", "teachonce", "teach", "local-tars", "--root", str(SHARED / "data/tiny-imagenet")),
        *("--teacher", f"local-dir:{models / 'tin-teacher'}", "--student", f"local-dir:{models / 'tin-student'}"),
        *("--labels", store, "--shots", "4", "--chunk-rows", "8", "--top-k", "10", "--embeddings", "int8"),
        *("--set", "threads=1", "--json", *more),
    ]


def said(*command: str) -> str:
    """What a program of SLURM says."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@dataclass
class Trial:
    """A run of `teach` on SLURM."""

    folder: Path
    name: str
    process: subprocess.Popen[str]

    def jobs(self, states: str = "RUNNING") -> list[str]:
        """Its jobs in these states."""
        return said("squeue", "--noheader", f"--name={self.name}", f"--states={states}", "--format=%i").split()

    def committed(self) -> int:
        """How many chunks of labels have their record on disk."""
        return len(list((self.folder / "labels.zarr").glob("ledger/labels/c/*/0")))

    def until(self, chunks: int) -> None:
        """Wait for so many chunks."""
        while self.committed() < chunks and self.process.poll() is None:
            time.sleep(0.05)
        assert self.process.poll() is None, self.notes()

    def workers(self) -> list[psutil.Process]:
        """The processes of its jobs that run `dask worker`: they start and watch the process that computes."""
        processes = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            variables, words = process.info["environ"] or {}, process.info["cmdline"] or []
            if variables.get("SLURM_JOB_NAME") == self.name and "distributed.cli.dask_worker" in words:
                processes.append(process)
        return processes

    def notes(self) -> str:
        """What it has said to a person so far."""
        return (self.folder / "notes").read_text()

    def ended(self, code: int = 0) -> str:
        """Its notes, once it has ended with this code and has left no job."""
        returned = self.process.wait(timeout=600)
        assert returned == code, self.notes()
        until = time.monotonic() + 40
        while left := self.jobs("RUNNING,PENDING"):
            assert time.monotonic() < until, left
            time.sleep(0.5)
        return self.notes()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    """Starts a run with some lines of the description replaced; the node is up again after the test."""
    trials: list[Trial] = []

    def start(*changes: tuple[str, str], path: str = "") -> Trial:
        name = f"trial-{os.getpid()}-{len(trials)}"
        text = DESCRIPTION.format(name=name)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "slurm.toml").write_text(text)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        variables = os.environ | QUICK | {"PATH": path + os.environ["PATH"]}
        with open(tmp_path / "notes", "w") as notes, open(tmp_path / "result", "w") as result:
            process = subprocess.Popen(
                teach_command("labels.zarr", "--cluster", "slurm.toml"),
                cwd=tmp_path,
                stdout=result,
                stderr=notes,
                text=True,
                env=variables,
            )
        trials.append(Trial(tmp_path, name, process))
        return trials[-1]

    yield start
    for trial in trials:
        if trial.process.poll() is None:
            trial.process.terminate()
            trial.process.wait(60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one worker on this machine makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(teach_command("labels.zarr"), cwd=folder, check=True, capture_output=True, timeout=600)
    return folder / "labels.zarr"


def require_equal(store: Path, other: Path) -> None:
    """The same id, and the same bytes in every file that is no record of the ledger."""
    assert LabelStore.open(store).store_id() == LabelStore.open(other).store_id()

    def files(root: Path) -> dict[str, bytes]:
        paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return {path: (root / path).read_bytes() for path in paths if not path.startswith("ledger/")}

    mine, wanted = files(store), files(other)
    assert mine.keys() == wanted.keys()
    assert [path for path in mine if mine[path] != wanted[path]] == []


def node(state: str) -> None:
    """Set the node's state; a node that came back by itself cannot be resumed."""
    command = ["scontrol", "update", f"nodename={NODE}", f"state={state}", "reason=trial"]
    subprocess.run(command, check=state != "resume", timeout=60)


def a_job_is_cancelled(trial: Trial) -> None:
    """`scancel` of a job that runs."""
    said("scancel", trial.jobs()[0])


def the_node_is_drained(trial: Trial) -> None:
    """Drained, and a job cancelled meanwhile: its successor waits until the node is back."""
    node("drain")
    said("scancel", trial.jobs()[0])
    time.sleep(25)
    node("resume")


def the_node_goes_down(trial: Trial) -> None:
    """SLURM ends its jobs."""
    node("down")
    time.sleep(10)
    node("resume")


def a_worker_is_killed(trial: Trial) -> None:
    """kill -9 of the process that computes; the process above it starts another."""
    trial.workers()[0].children(recursive=True)[-1].kill()


def a_step_is_killed(trial: Trial) -> None:
    """kill -9 of everything that a job runs."""
    worker = trial.workers()[0]
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()


def the_controller_restarts(trial: Trial) -> None:
    """The controller is away for 90 seconds, and a job ends meanwhile: no other is taken until it is back."""
    subprocess.run([RESTART, "stop"], check=True, timeout=60)
    a_step_is_killed(trial)
    time.sleep(90)
    subprocess.run([RESTART, "start"], check=True, timeout=60)


def time_is_up(trial: Trial) -> None:
    """The walltime of a job ends, long before its worker would have left."""
    said("scontrol", "update", f"jobid={trial.jobs()[0]}", "timelimit=1")


def both_jobs_are_lost(trial: Trial) -> None:
    """No worker is left."""
    said("scancel", *trial.jobs())


FAULTS = [
    a_job_is_cancelled,
    both_jobs_are_lost,
    the_node_is_drained,
    the_node_goes_down,
    a_worker_is_killed,
    a_step_is_killed,
    the_controller_restarts,
    time_is_up,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_store_is_the_same_although(
    fault: Callable[[Trial], None], begin: Callable[..., Trial], undisturbed: Path
) -> None:
    """Whatever happens to jobs, the run ends well, and with the same bytes."""
    trial = begin()
    trial.until(6)
    fault(trial)
    notes = trial.ended()
    require_equal(trial.folder / "labels.zarr", undisturbed)
    if fault is the_controller_restarts:
        assert notes.count("takes no further job") <= 1  # none where the other worker has done it all meanwhile


def test_sbatch_fails_in_the_middle(begin: Callable[..., Trial], undisturbed: Path, tmp_path: Path) -> None:
    """A submission that SLURM refuses is made again, with one note in SLURM's words."""
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "sbatch"
    flag = tmp_path / "refuse"
    broken.write_text(BROKEN_SBATCH.format(flag=flag, sbatch=shutil.which("sbatch")))
    broken.chmod(0o755)
    trial = begin(("jobs = 2", "jobs = 1"), path=f"{tmp_path / 'bin'}{os.pathsep}")
    trial.until(6)
    flag.touch()
    first = trial.jobs()
    said("scancel", *first)
    while "takes no further job" not in trial.notes():
        time.sleep(0.5)
    flag.unlink()
    notes = trial.ended()
    assert notes.count("takes no further job") == 1 and "temporarily unable to accept job" in notes
    require_equal(trial.folder / "labels.zarr", undisturbed)


def test_the_driver_is_killed(begin: Callable[..., Trial], undisturbed: Path) -> None:
    """kill -9: its jobs are gone within seconds, and the same command completes the store."""
    trial = begin()
    trial.until(6)
    trial.process.kill()
    trial.ended(-signal.SIGKILL)
    second = begin()
    second.ended()
    result = json.loads((second.folder / "result").read_text())
    assert result["chunks_skipped"] >= 6 and result["chunks_skipped"] + result["chunks_written"] == 60
    require_equal(second.folder / "labels.zarr", undisturbed)


def test_ctrl_c(begin: Callable[..., Trial], undisturbed: Path) -> None:
    """The run ends, its jobs too, and the same command completes the store."""
    trial = begin()
    trial.until(6)
    trial.process.send_signal(signal.SIGINT)
    trial.ended(130)
    second = begin()
    second.ended()
    require_equal(second.folder / "labels.zarr", undisturbed)


def test_a_closed_partition(begin: Callable[..., Trial], undisturbed: Path) -> None:
    """The note says SLURM's reason; when the partition is opened, the run goes on."""
    trial = begin(('queue = "gpu"', 'queue = "closed"'))
    while "PENDING (PartitionDown)" not in trial.notes():
        assert trial.process.poll() is None, trial.notes()
        time.sleep(1)
    said("scontrol", "update", "partition=closed", "state=up")
    try:
        trial.ended()
    finally:
        said("scontrol", "update", "partition=closed", "state=down")
    require_equal(trial.folder / "labels.zarr", undisturbed)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ([("--job-name", '--constraint=nosuchthing", "--job-name')], 6, "SLURM takes no job: .*nvalid feature"),
        ([('"gpu:1"', '"gpu:9"')], 6, "SLURM takes no job: .*node configuration is not available"),
        ([('"gpu"', '"short"')], 6, r"can never start: PENDING \(PartitionTimeLimit\)"),
        ([('"lo"', '"lo"\njob_script_prologue = ["module load cuda"]')], 6, "module: command not found"),
        ([('"lo"', '"lo"\npython = "/nowhere/python"')], 6, "/nowhere/python"),
        ([('"gpu"', '"closed"'), ("5 minutes", "20 s")], 5, r"PENDING \(PartitionDown\)"),
    ],
)
def test_what_can_never_be_ends_the_run(
    changes: list[tuple[str, str]], code: int, words: str, begin: Callable[..., Trial]
) -> None:
    """Soon, with the words of SLURM or of a job's log; no job is left."""

    began = time.monotonic()
    notes = begin(*changes).ended(code)
    assert re.search(words, notes), notes
    assert time.monotonic() - began < 120
