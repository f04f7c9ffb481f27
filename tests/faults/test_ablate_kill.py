"""A grid that is killed at any time loses at most the cells in flight, and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grids
import psutil
import pytest
from fault_processes import Processes, eventually, workers_of
from worlds import World

from teachonce.cluster.description import ClusterSpec
from teachonce.core.documents import read_events

pytestmark = pytest.mark.slow  # seven starts of workers, each of which imports torch
CELLS = 4
STEPS = 40
GRID = (
    f"[base]\nsteps = {STEPS}\nbatch_size = 8\ncheckpoint_every = 3\nlog_every = 1\n"
    '[axes]\nseed = [0, 1]\nstructure = ["unshared", "shared"]\n'
)


@pytest.fixture(scope="module")
def whole(world: World, finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The prompts of every cell of a grid that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    grids.run(
        grids.write(folder / "grid.toml", GRID),
        finished,
        student,
        folder / "out",
        cluster=ClusterSpec(workers=psutil.cpu_count()),
    )
    return grids.prompts_of(folder / "out")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """What this test starts; ended with it."""
    with Processes(tmp_path / "run") as started:
        yield started


def start(processes: Processes, finished: Path, student: str, name: str) -> psutil.Popen:
    """`teachonce ablate` with two workers of one thread each."""
    grid = grids.write(processes.folder / "grid.toml", GRID)
    workers = str(max(2, psutil.cpu_count() or 1))
    return processes.start(
        "teachonce",
        "ablate",
        str(grid),
        "--labels",
        str(finished),
        "--student",
        student,
        "--out",
        "out",
        "--workers",
        workers,
        "--json",
        out=name,
    )


def steps_of(out: Path) -> dict[str, int]:
    """The newest logged step of every cell."""
    logs = out.glob("cells/*/events.jsonl")
    return {log.parent.name: max((e.get("step", 0) for e in read_events(log)), default=0) for log in logs}


def in_the_middle(out: Path) -> bool:
    """One cell is finished and another has done some steps."""
    steps = steps_of(out)
    return bool(grids.prompts_of(out)) and any(3 < step < STEPS - 3 for step in steps.values())


def result_of(processes: Processes, name: str, run: psutil.Popen) -> dict[str, int]:
    """The counts that a run printed."""
    run.wait(timeout=240)
    printed = (processes.folder / f"{name}.out").read_text()
    assert run.returncode == 0, (processes.folder / f"{name}.err").read_text()[-3000:]
    cells: dict[str, int] = json.loads(printed)["cells"]
    return cells


def in_vain(run: psutil.Popen, out: Path, true: Callable[[Path], bool], what: str) -> None:
    """Wait, unless the run is so quick that it ends."""
    eventually(lambda: true(out), what, run)


def test_killed_driver_killed_worker_then_sigterm_and_the_same_bytes(
    processes: Processes, finished: Path, student: str, whole: dict[str, bytes]
) -> None:
    out = processes.folder / "out"
    run = start(processes, finished, student, "first")
    in_vain(run, out, in_the_middle, "the middle of the grid")
    children = workers_of(run)
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "workers outlive their driver"
    kept = {file: file.stat().st_mtime_ns for file in out.glob("cells/*/prompts.safetensors")}
    assert 1 <= len(kept) < CELLS

    run = start(processes, finished, student, "second")
    eventually(lambda: len(workers_of(run)) >= 2 and _starts(out) > len(kept) + 2, "cells that go on", run)
    workers_of(run)[0].send_signal(signal.SIGKILL)
    time.sleep(0.5)
    if run.poll() is None:
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=60)
    assert run.returncode in (0, 143)

    run = start(processes, finished, student, "third")
    cells = result_of(processes, "third", run)
    assert cells["finished"] + cells["skipped"] == CELLS and cells["failed"] == cells["missing"] == 0
    assert cells["skipped"] >= len(kept)
    assert grids.prompts_of(out) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "a finished cell was written again"


def _starts(out: Path) -> int:
    return sum(event["event"] == "cell_start" for event in read_events(out / "events.jsonl"))


def test_sigterm_lets_the_cells_in_flight_write_their_checkpoints(
    processes: Processes, finished: Path, student: str, whole: dict[str, bytes]
) -> None:
    """The checkpoint is of the step at which the cell stopped, and no worker is left."""
    out = processes.folder / "out"
    run = start(processes, finished, student, "first")
    in_vain(run, out, lambda place: any(step > 3 for step in steps_of(place).values()), "some steps")
    children = workers_of(run)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    last = {event["digest"]: event["event"] for event in read_events(out / "events.jsonl")}
    assert "cell_stopped" in last.values() and "cell_start" not in last.values()
    for digest, step in steps_of(out).items():
        if last.get(digest) == "cell_stopped":
            assert (out / "cells" / digest / "checkpoints" / f"step-{step:08d}.safetensors").is_file()
    assert result_of(processes, "second", start(processes, finished, student, "second"))["missing"] == 0
    assert grids.prompts_of(out) == whole
