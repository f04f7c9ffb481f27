"""Jobs of PBS, LSF and SGE: what their scripts ask for, that their workers work, and what their queues say.

SLURM's own tests are elsewhere; the programs of these three are stand-ins that start the job script right here.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from batch_stand_ins import stand_in
from worlds import Notes

from teachonce.batch.other_queues import job_queue
from teachonce.cluster.client import open_cluster, run_tasks, threads_of
from teachonce.cluster.description import ClusterSpec, load_description
from teachonce.cluster.jobs import started
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault, UsageError

COMMON = """
kind = "{kind}"
jobs = 1
cores = 2
memory = "4 GB"
queue = "long"
interface = "lo"
environment = {{HF_HOME = "/data/hf"}}
"""
KINDS = {
    "pbs": 'walltime = "01:00:00"\naccount = "lab"\nresource_spec = "select=1:ncpus=2:ngpus=1:mem=4gb"\n',
    "lsf": 'walltime = "01:00"\nproject = "lab"\ngpu = "num=1"\n',
    "sge": 'walltime = "01:00:00"\nproject = "lab"\nresource_spec = "gpu=1"\nparallel_environment = "smp"\n',
}
DIRECTIVES = {
    "pbs": ["#PBS -q long", "#PBS -A lab", "#PBS -l select=1:ncpus=2:ngpus=1:mem=4gb", "#PBS -l walltime=01:00:00"],
    "lsf": ["#BSUB -q long", '#BSUB -P "lab"', "#BSUB -n 2", "#BSUB -W 01:00", '#BSUB -gpu "num=1"'],
    "sge": ["#$ -q long", "#$ -P lab", "#$ -l gpu=1", "#$ -l h_rt=01:00:00", "#$ -pe smp 2", "#$ -S /bin/bash"],
}


def written(folder: Path, kind: str, *change: str) -> Path:
    """The file of a description of this kind."""
    text = COMMON.format(kind=kind) + KINDS[kind]
    file = folder / f"{kind}.toml"
    file.write_text(text.replace(*change) if change else text)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_asks_for_what_is_described_and_its_worker_works(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directives in the words of the batch system, the environment, a task's result, and a job cancelled at the end."""
    file = written(tmp_path, kind)
    assert threads_of(ClusterSpec(file=file)) == 2
    with stand_in(kind, tmp_path / "batch") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        with open_cluster(ClusterSpec(file=file), Silent()) as client:
            assert list(run_tasks(client, sum, [([1, 2],)], "sums")) == [3]
            assert list(client.run(os.getenv, "HF_HOME").values()) == ["/data/hf"]
        script = (tmp_path / "batch/1.sh").read_text()
        assert (tmp_path / "batch/1.cancelled").exists() and not (tmp_path / "batch/2.sh").exists()
    lines = script.splitlines()
    for line in DIRECTIVES[kind]:
        assert line in lines, line
    command = lines[-1].split()
    assert command[command.index("--lifetime") + 1] == "3300s", "an hour less twice its 24th"


@pytest.mark.parametrize(
    ("kind", "words"),
    [("pbs", "PBS takes no job: qsub: Invalid account"), ("lsf", "No such project"), ("sge", "job rejected")],
)
def test_a_refusal_is_said_in_the_words_of_the_batch_system(
    kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6; also where its program is not there."""
    wanted = load_description(written(tmp_path, kind, '"lab"', '"nobody"'))
    with stand_in(kind, tmp_path / "batch") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        with pytest.raises(EnvironmentFault, match=words) as caught, started(wanted, Notes()):  # type: ignore[arg-type]
            pass
        assert {"pbs": "account", "lsf": "project", "sge": "project"}[kind] in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "walltime", "seconds"),
    [
        ("pbs", "7200", 7200),
        ("pbs", "30:00", 1800),
        ("pbs", "100:00:00", 360_000),
        ("sge", "01:30:00", 5400),
        ("lsf", "90", 5400),
        ("lsf", "12:30", 45_000),
    ],
)
def test_times_are_read_as_the_batch_system_reads_them(kind: str, walltime: str, seconds: int, tmp_path: Path) -> None:
    usual = "01:00" if kind == "lsf" else "01:00:00"
    wanted: Any = load_description(written(tmp_path, kind, f'"{usual}"', f'"{walltime}"'))
    assert wanted.walltime_seconds() == seconds


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("pbs", ('"01:00:00"', '"1-00:00"'), "not a time as PBS writes it"),
        ("pbs", ('"01:00:00"', '"120"'), "at least 300 s"),
        ("lsf", ('"01:00"', '"01:00:00"'), "not a time as LSF writes it"),
        ("sge", ('parallel_environment = "smp"', ""), "parallel_environment"),
        ("sge", ('"smp"', '"smp\\n#$ -o x"'), "parallel_environment must be plain words"),
        ("pbs", ('"select=1', '"a\\nselect=1'), "resource_spec must be plain words"),
        ("lsf", ('"num=1"', '"num=1\\n"'), "gpu must be plain words"),
        ("lsf", ("project", "account"), "account"),
        ("pbs", ("account", "gres"), "gres"),
    ],
)
def test_a_mistake_is_refused(kind: str, change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_description(written(tmp_path, kind, *change))


PBS_SAYS = """Job Id: 12.head.cluster
    Job_Name = dask-worker
    job_state = Q
    comment = Can Never Run: Insufficient amount of resource: ngpus (R: 9 A: 2
\t T: 2)
    Error_Path = login:/home/me/dask-worker.e12
Job Id: 13.head.cluster
    job_state = R
Job Id: 14.head.cluster
    job_state = C
"""
LSF_SAYS = """12|PEND|Not enough job slots;Job's requirements for resource reservation not satisfied
13|RUN|-
14|EXIT|-
"""
SGE_SAYS = """job-ID  prior   name       user         state submit/start at     queue          slots ja-task-ID
---------------------------------------------------------------------------------------------------------
     12 0.50000 dask-worke me           qw    11/30/2026 10:00:00                                    8
     13 0.55500 dask-worke me           r     11/30/2026 10:00:00 all.q@node1                        8
     15 0.00000 dask-worke me           Eqw   11/30/2026 10:00:00                                    8
error reason    1:          can't get password entry for user "me"
"""


@pytest.mark.parametrize(
    ("kind", "says", "waits", "ended", "hopeless", "words"),
    [
        ("pbs", PBS_SAYS, {"12"}, {"14"}, {"12"}, "Q (Can Never Run: Insufficient amount of resource: ngpus"),
        ("lsf", LSF_SAYS, {"12"}, {"14"}, set(), "PEND (Not enough job slots"),
        ("sge", SGE_SAYS, {"12", "15"}, set(), {"15"}, "qw"),
    ],
)
def test_a_queue_is_read(
    kind: str,
    says: str,
    waits: set[str],
    ended: set[str],
    hopeless: set[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """States and reasons as the programs' manuals show them; no answer is None, and no end of the jobs."""
    asked = ["12", "13", "14", "15"]
    with stand_in(kind, tmp_path / "batch") as variables:
        monkeypatch.setenv("PATH", variables["PATH"])
        assert asyncio.run(job_queue(kind, "").look(asked)) is None
        (tmp_path / "batch/says").write_text(says)
        states = asyncio.run(job_queue(kind, "").look(asked))
    assert states is not None
    assert {job for job, state in states.items() if state.waits} == waits
    assert {job for job, state in states.items() if state.ended} == ended
    assert {job for job, state in states.items() if state.hopeless} == hopeless
    assert states["12"].words.startswith(words) and not states["13"].waits
    if kind == "sge":
        assert "can't get password entry" in states["15"].words


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pbs", "dask-worker.e12"), ("lsf", "w-12.err"), ("sge", "dask-worker.o12"), ("pbs", "12.head.ER")],
)
def test_a_log_is_found_by_the_names_of_the_batch_system(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("module: command not found\n")
    (tmp_path / name.replace("12", "112")).write_text("another job\n")
    log = asyncio.run(job_queue(kind, "").log_of("12", [tmp_path]))
    assert log.lines == ("module: command not found",)
