"""ablate's task: it stops when it is not wanted, gives up where workers die, and waits for who still writes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import Notes

from teachonce.core.documents import read_events
from teachonce.core.locks import exclusive, owned
from teachonce.core.progress import deferred_signals, stopped_by
from teachonce.errors import IncompleteError
from teachonce.recipe.config import TrainConfig
from teachonce.runs.grid_folder import GridFolder
from teachonce.stages.ablate import cell as ablate_cell
from teachonce.stages.ablate.cell import CellJob, CellReport, run_cell


@pytest.fixture
def job(finished: Path, student: str, tmp_path: Path) -> Iterator[CellJob]:
    """A cell of many steps, of a driver that holds its grid."""
    config = TrainConfig.of(steps=2000, batch_size=8, checkpoint_every=1000, log_every=1)
    with owned(tmp_path / "out/grid.json", Notes()) as token:
        yield CellJob(
            out=tmp_path / "out",
            token=token,
            digest="d",
            name="n",
            labels=finished,
            selection=None,
            student=student,
            prompts=None,
            config=config,
            root=None,
            threads=1,
            evaluations=(),
        )


def in_a_thread(job: CellJob) -> tuple[threading.Thread, list[CellReport]]:
    """The task as a worker runs it, outside the main thread."""
    reports: list[CellReport] = []
    thread = threading.Thread(target=lambda: reports.append(run_cell(job)))
    thread.start()
    return thread, reports


def test_a_cell_stops_with_a_checkpoint_when_its_driver_calls_it_off(job: CellJob) -> None:
    folder = GridFolder(job.out)
    thread, reports = in_a_thread(job)
    log = folder.cell("d").path / "events.jsonl"
    while thread.is_alive() and not (log.is_file() and any(e["event"] == "step" for e in read_events(log))):
        thread.join(0.05)
    folder.stop.touch()
    thread.join(60)
    assert [report.state for report in reports] == ["stopped"]
    last = max(event["step"] for event in read_events(log) if event["event"] == "step")
    assert folder.cell("d").step() == last > 0 and folder.cell("d").trained() is None
    assert [event["event"] for event in read_events(job.out / "events.jsonl")] == ["cell_start", "cell_stopped"]
    assert run_cell(job).state == "stopped", "nothing is begun while the driver ends"


def test_a_cell_of_a_driver_that_lost_the_grid_is_not_begun(job: CellJob) -> None:
    assert run_cell(dataclasses.replace(job, token=job.token + 1)).state == "stopped"
    assert not (job.out / "cells").exists()


def test_a_cell_in_which_workers_die_is_given_up(job: CellJob, monkeypatch: pytest.MonkeyPatch) -> None:
    log = GridFolder(job.out).log
    for step in (0, 7, 7):  # the second got further than the first
        log.write("cell_start", digest="d", name="n", token=job.token, step=step)
    (job.out / "cells/d/checkpoints").mkdir(parents=True)
    (job.out / "cells/d/checkpoints/step-00000007.safetensors").touch()
    log.write("cell_start", digest="d", name="n", token=job.token + 1, step=7)  # of an earlier call
    tried: list[Any] = []
    monkeypatch.setattr("teachonce.stages.train.train", lambda *asked: tried.append(asked))
    monkeypatch.setattr(ablate_cell.CellFolder, "trained", lambda self: {} if tried else None)
    assert run_cell(job).state == "finished" and len(tried) == 1
    tried.clear()
    for _ in range(3):
        log.write("cell_start", digest="d", name="n", token=job.token, step=7)
    report = run_cell(job)
    assert report.state == "failed" and "3 workers died" in report.message and not tried
    problem = GridFolder(job.out).cell("d").problem()
    assert problem is not None and problem.kind == "IncompleteError"


def test_a_cell_waits_for_a_process_that_still_writes_it(job: CellJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate_cell, "CELL_SECONDS", 0.3)
    (job.out / "locks").mkdir()
    with exclusive(job.out / "locks/d", create=True) as handle:
        assert handle is not None
        report = run_cell(job)
    assert report.state == "stopped" and "another process runs this cell" in report.message
    assert GridFolder(job.out).cell("d").problem() is None and not (job.out / "cells/d/checkpoints").exists()


def test_loops_outside_the_main_thread_stop_when_they_are_asked() -> None:
    """A training loop in a worker's thread: the step is finished, the block ends with an error that says why."""
    ended: list[Any] = []

    def loop() -> None:
        steps = iter(range(10))
        try:
            with stopped_by(lambda: next(steps) == 3), deferred_signals() as stop_requested:
                ended.extend(step for step in range(10) if not stop_requested())
        except IncompleteError as problem:
            ended.append(problem)
        with deferred_signals() as stop_requested:
            ended.append(stop_requested())

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join(10)
    assert ended[:3] == [0, 1, 2] and isinstance(ended[3], IncompleteError) and ended[4] is False
