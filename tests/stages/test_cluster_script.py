"""cluster script: one job script that starts a scheduler, its workers and the command, and ends all of them.

`srun` is a stand-in that starts the tasks of a step right here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from worlds import CHUNK_ROWS, World, all_arrays, request_for

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.labels.store import LabelStore
from teachonce.stages.cluster_script import ClusterScriptRequest, cluster_script
from teachonce.stages.teach import teach

SLURM = """
kind = "slurm"
jobs = 2
cores = 4
memory = "16 GiB"
walltime = "04:00:00"
queue = "gpu"
account = "lab"
gres = "gpu:a100:1,lscratch:100"
job_extra_directives = ["--exclusive=user"]
job_script_prologue = ["export FROM_PROLOGUE='two words'"]
environment = {WORDS = "it's; $(echo ran)"}
interface = "lo"
"""
SRUN = """
import os, subprocess, sys

count = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--ntasks="))
command = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(
        command,
        env=os.environ | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURMD_NODENAME": "node"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    for n in range(count)
]
try:
    for task in tasks:
        task.wait()
finally:
    for task in tasks:
        task.terminate()
"""
# What runs in place of `python -m teachonce`: it says what it was given and what its cluster is, and ends with 5.
DRIVER = """
import json, os, sys
from teachonce.cluster.client import open_cluster, run_tasks
from teachonce.cluster.description import ClusterSpec
from teachonce.core.progress import Silent

with open_cluster(ClusterSpec(scheduler=sys.argv[-1]), Silent()) as client:
    client.wait_for_workers(2, timeout=60)
    names = sorted(str(one["name"]) for one in client.scheduler_info(n_workers=-1)["workers"].values())
    words = list(client.run(os.getenv, "WORDS").values())
    (three,) = run_tasks(client, sum, [([1, 2],)], "sum")
with open("said.json", "w") as said:
    json.dump([sys.argv[1:-1], names, words, os.environ["FROM_PROLOGUE"], three], said)
sys.exit(5)
"""


def made(folder: Path, text: str = SLURM, out: str | None = "teach.sh") -> Any:
    """The answer for a description with this text, and the script beside it."""
    (folder / "slurm.toml").write_text(text)
    request = ClusterScriptRequest(file=folder / "slurm.toml", out=None if out is None else folder / out)
    return cluster_script(request, Silent())


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in its folder, as SLURM would on the first node."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "srun").write_text(f"#!{sys.executable}\n{SRUN}")
    (programs / "srun").chmod(0o755)
    here = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", "teach.sh", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | here, capture_output=True, text=True, timeout=300, check=False
    )


def left_over(folder: Path) -> list[str]:
    """What the script has left running or lying there."""
    until = time.monotonic() + 10
    while True:
        running = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
        left = [line for line in running if f"{folder}/teachonce-7" in line]
        left += [path.name for path in folder.glob("teachonce-7-*")]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


def test_the_script_asks_for_the_whole_allocation(tmp_path: Path) -> None:
    """Tasks, cores, memory a core, GPUs a task, the rest of gres; it never puts itself back into the queue."""
    answer = made(tmp_path)
    lines = (tmp_path / "teach.sh").read_text().splitlines()
    assert answer.workers == 2 and answer.script.splitlines() == lines
    for asked in (
        "--ntasks=2",
        "--cpus-per-task=4",
        "--mem-per-cpu=4096M",
        "--gpus-per-task=a100:1",
        "--gres=lscratch:100",
        "--no-requeue",
        "-p gpu",
        "-A lab",
        "-t 04:00:00",
        "--exclusive=user",
    ):
        assert f"#SBATCH {asked}" in lines, asked
    (step,) = [line for line in lines if line.startswith("srun ")]
    assert "--ntasks=2 --cpus-per-task=4 --gpus-per-task=a100:1 --kill-on-bad-exit=0" in step
    assert subprocess.run(["bash", "-n", tmp_path / "teach.sh"], check=False).returncode == 0


def test_the_folder_of_logs_is_made_with_the_script(tmp_path: Path) -> None:
    """SLURM makes none, and a job without it ends before its first line; one that is printed makes none."""
    text = SLURM + f'log_directory = "{tmp_path}/logs/teach"\n'
    assert made(tmp_path, text, out=None).out is None and not (tmp_path / "logs").exists()
    made(tmp_path, text)
    assert (tmp_path / "logs" / "teach").is_dir()
    assert f"#SBATCH -o {tmp_path}/logs/teach/teachonce-%j.out" in (tmp_path / "teach.sh").read_text().splitlines()


def test_the_script_runs_scheduler_workers_and_command_and_ends_them_all(tmp_path: Path) -> None:
    """Arguments come through as they were, both workers take part, and the job's exit code is the command's."""
    driver, python = tmp_path / "driver.py", tmp_path / "python"
    driver.write_text(DRIVER)
    python.write_text(
        f'#!/bin/bash\nif [ "$2" = teachonce ]; then shift 3; exec {sys.executable} {driver} "$@"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    made(tmp_path, SLURM + f'python = "{python}"\n')
    ended = run_script(tmp_path, "a set.toml", "--labels", "it's.zarr")
    assert ended.returncode == 5, ended.stderr
    arguments, names, words, prologue, three = json.loads((tmp_path / "said.json").read_text())
    assert arguments == ["a set.toml", "--labels", "it's.zarr", "--scheduler"] and three == 3
    assert names == ["node-0-gpu-0", "node-1-gpu-1"], "the number at the end picks the GPU"
    assert words == ["it's; $(echo ran)"] * 2 and prologue == "two words"
    assert left_over(tmp_path) == []


def test_a_scheduler_that_does_not_start_and_a_prologue_that_fails_end_the_job(tmp_path: Path) -> None:
    """With its words, and at once."""
    made(tmp_path, SLURM.replace('"lo"', '"no-such-network"'))
    ended = run_script(tmp_path, "set.toml")
    assert ended.returncode == 6 and "no-such-network" in ended.stderr
    (tmp_path / "second").mkdir()
    made(tmp_path / "second", SLURM.replace("export FROM_PROLOGUE='two words'", "no-such-program"))
    ended = run_script(tmp_path / "second", "set.toml")
    assert ended.returncode == 127 and "no-such-program" in ended.stderr
    assert left_over(tmp_path) == [] and left_over(tmp_path / "second") == []


@pytest.mark.slow  # the whole way through a real teach, with two workers that load torch
def test_a_store_that_was_taught_in_one_allocation_is_the_same_store(
    tmp_path: Path, world: World, teacher: str, student: str
) -> None:
    made(tmp_path, SLURM.replace('"16 GiB"', '"4 GB"'))
    given = ["--root", str(world.root), "--teacher", teacher, "--student", student, "--labels", "a.zarr"]
    given += ["--top-k", "5", "--chunk-rows", str(CHUNK_ROWS), "--set", "batch_size=4", "--set", "threads=1"]
    ended = run_script(tmp_path, f"{world.root}/wds.toml", *given)
    assert ended.returncode == 0, ended.stderr
    teach(request_for(world, tmp_path / "b.zarr", teacher, students=(student,), top_k=5), Silent())
    assert LabelStore.open(tmp_path / "a.zarr").store_id() == LabelStore.open(tmp_path / "b.zarr").store_id()
    one, other = all_arrays(tmp_path / "a.zarr"), all_arrays(tmp_path / "b.zarr")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "local"\nworkers = 2\n', 'is made for "slurm"'),
        (SLURM.replace("jobs = 2", ""), "give 'jobs' or 'adaptive'"),
    ],
)
def test_a_description_of_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        made(tmp_path, text)
    assert not (tmp_path / "teach.sh").exists()


def test_the_largest_number_of_jobs_is_taken_and_a_bare_gpu_counts_one(tmp_path: Path) -> None:
    text = SLURM.replace("jobs = 2", "adaptive = {minimum = 1, maximum = 3}").replace("gpu:a100:1,lscratch:100", "gpu")
    answer = made(tmp_path, text, out=None)
    assert (answer.workers, answer.out) == (3, None)
    assert "#SBATCH --ntasks=3\n" in answer.script and "#SBATCH --gpus-per-task=1\n" in answer.script
    assert "--gres" not in answer.script
