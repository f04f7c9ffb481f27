"""What status says of a training run and of a grid: begun, running, killed, resumed, half written, finished."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from status_folders import AWAY, HERE, dead_process, event, look, make_grid, make_run

from teachonce.core.machine import ProcessMark
from teachonce.core.progress import Silent
from teachonce.runs.grid_status import GridStatus
from teachonce.runs.status import RunStatus


@pytest.fixture(scope="module")
def dead() -> ProcessMark:
    """A process that has ended."""
    return dead_process()


def test_a_living_run_has_step_losses_pace_and_end(tmp_path: Path) -> None:
    """Five steps a second from the log's own times, thirty steps left."""
    now = time.time()
    state = look(make_run(tmp_path / "run", HERE, 70, now - 14.0))
    assert isinstance(state, RunStatus) and state.state == "running"
    assert (state.step, state.steps, state.checkpoint, state.resumed) == (70, 100, 60, 0)
    assert state.losses == {"loss": 2.0, "hard": 1.5, "soft": 0.5}
    assert (state.learning_rate, state.gradient_norm) == (0.02, 0.25)
    assert state.held_out == {"top1": 0.3, "step": 60, "best_top1": 0.5, "best_step": 40}
    assert state.steps_per_second == pytest.approx(5.0)
    assert state.seconds_left == pytest.approx(6.0, abs=1.0)
    assert state.estimated_end is not None and state.process is not None and state.process.alive is True


def test_a_run_whose_process_is_gone_has_stopped(tmp_path: Path, dead: ProcessMark) -> None:
    """What is left would take six seconds; it ends when somebody goes on with it."""
    state = look(make_run(tmp_path / "run", dead, 70, time.time() - 100))
    assert (state.state, state.estimated_end, state.seconds_left) == ("stopped", None, 6.0)


def test_a_run_that_nobody_has_the_lock_of_has_stopped(tmp_path: Path) -> None:
    """It was stopped in an orderly way; the process, a notebook for instance, may well live."""
    state = look(make_run(tmp_path / "run", None, 70, time.time() - 14))
    assert (state.state, state.process, state.estimated_end) == ("stopped", None, None)


def test_a_process_that_cannot_be_asked_is_judged_by_its_silence(tmp_path: Path) -> None:
    """On another machine. Fresh lines: running. An hour without one: unknown, and no end is promised."""
    run = make_run(tmp_path / "run", AWAY, 70, time.time() - 14)
    assert (look(run).state, look(run).process.alive) == ("running", None)
    for file in [item for item in run.rglob("*") if item.is_file()]:
        os.utime(file, (time.time() - 3600,) * 2)
    state = look(run)
    assert (state.state, state.estimated_end) == ("unknown", None)
    assert state.seconds_since_sign == pytest.approx(3600, abs=5)


def test_a_resumed_run_has_the_pace_of_its_last_attempt(tmp_path: Path) -> None:
    """The hour between the attempts, and the slower first one, do not count."""
    now = time.time()
    run = make_run(tmp_path / "run", HERE, 40, now - 3600)
    with open(run / "events.jsonl", "a") as log:
        log.write(event("pairing", now - 4, step=40))
        for step in (50, 60):
            log.write(event("step", now - 4 + (step - 40) / 10, step=step, loss=1.0))
    state = look(run)
    assert (state.step, state.resumed) == (60, 1)
    assert state.steps_per_second == pytest.approx(10.0)


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    """A line that is being written, bytes that are no text, lists, events without a time."""
    run = make_run(tmp_path / "run", HERE, 70, time.time() - 14)
    with open(run / "events.jsonl", "ab") as log:
        log.write(b'[1]\n{"event": "step"}\n{"event": 3, "time": 1}\nnull\n\xff\xfe\n')
        log.write(b'{"schema": 1, "time": NaN, "event": "step", "step": 80}\n{"schema": 1, "ti')
    (run / "results.json").write_text('{"steps": 1')
    state = look(run)
    assert (state.state, state.step) == ("running", 70)


@pytest.mark.parametrize("held", [(), ("checkpoints",), ("checkpoints", "events.jsonl")], ids=str)
def test_a_run_that_has_only_begun_is_seen(held: tuple[str, ...], tmp_path: Path) -> None:
    """Before config.toml marks it, and before the first step is logged."""
    run = make_run(tmp_path / "run", HERE, 0, time.time())
    for item in list(run.iterdir()):
        if item.name not in (*held, ".teachonce.lock"):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    state = look(run)
    assert (state.kind, state.state, state.step, state.steps_per_second) == ("train", "starting", 0, None)


def test_a_real_run_that_ended(finished: Path, student: str, tmp_path: Path) -> None:
    """What train itself leaves: finished, with all its figures."""
    from teachonce.recipe.config_file import load_train_config
    from teachonce.stages.train import TrainRequest, train

    config = load_train_config(None, ["steps=12", "batch_size=16", "log_every=2", "held_out=0.3", "evaluate_every=4"])
    request = TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=config, threads=1)
    result = train(request, Silent())
    state = look(tmp_path / "run")
    assert (state.state, state.step, state.steps, state.checkpoint) == ("finished", 12, 12, 12)
    assert state.held_out is not None and state.held_out["top1"] == result.held_out_top1
    assert set(state.losses) == {"loss", "hard", "soft", "anchor"}
    assert state.seconds_left is None and state.steps_per_second is not None


def test_a_grid_counts_its_cells_and_its_time(tmp_path: Path, dead: ProcessMark) -> None:
    """Two that run share the work: half of each, half of an interrupted one, all of a waiting one, 20 s a cell."""
    states = {"a": "finished", "b": "running", "c": "again", "d": "failed", "e": "interrupted", "f": "waiting"}
    state = look(make_grid(tmp_path / "grid", states, dead, owner=HERE))
    assert isinstance(state, GridStatus) and (state.kind, state.state, state.title) == ("ablate", "running", "a grid")
    assert state.process is not None and state.process.alive is True
    assert state.cells == {"finished": 1, "running": 2, "failed": 1, "damaged": 0, "waiting": 2, "interrupted": 1}
    by_digest = {cell.digest: cell for cell in state.open_cells}
    assert {digest: cell.state for digest, cell in by_digest.items()} == {
        "b": "running",
        "c": "running",
        "d": "failed",
        "e": "interrupted",
    }
    assert (by_digest["b"].step, by_digest["b"].steps, by_digest["b"].loss) == (50, 100, 2.0)
    assert (by_digest["d"].problem, by_digest["d"].hint) == ("it broke", "mend it")
    assert by_digest["c"].problem is None, "the attempt that runs has not failed"
    assert state.seconds_per_cell == 20.0
    assert state.seconds_left == pytest.approx((0.5 * 20 * 3 + 20) / 2, abs=0.1)
    assert state.estimated_end is not None


def test_a_finished_cell_that_was_changed_is_damaged(tmp_path: Path, dead: ProcessMark) -> None:
    """It is not counted as finished, and what to do about it is said."""
    state = look(make_grid(tmp_path / "grid", {"a": "finished", "b": "damaged"}, dead))
    assert (state.cells["finished"], state.cells["damaged"]) == (1, 1)
    (cell,) = state.open_cells
    assert cell.state == "damaged" and "is not what its run wrote" in str(cell.problem) and "restore" in str(cell.hint)


def test_a_grid_without_a_finished_cell_goes_by_its_steps(tmp_path: Path, dead: ProcessMark) -> None:
    """Fifty steps are left of one cell and a hundred of the other, five a second."""
    state = look(make_grid(tmp_path / "grid", {"a": "running", "b": "waiting"}, dead, owner=HERE))
    assert state.seconds_per_cell is None and state.seconds_left == pytest.approx(30.0, abs=0.5)


@pytest.mark.parametrize("driver", ["dead", "gone"])
def test_a_grid_whose_driver_died_has_stopped(driver: str, tmp_path: Path, dead: ProcessMark) -> None:
    """Its cells do not run, whatever their last line says, and no end is promised."""
    owner = dead if driver == "dead" else None
    state = look(make_grid(tmp_path / "grid", {"a": "finished", "b": "running"}, dead, owner))
    assert (state.state, state.cells["running"], state.cells["interrupted"]) == ("stopped", 0, 1)
    assert state.seconds_left == pytest.approx(10.0) and state.estimated_end is None


@pytest.mark.parametrize(
    ("states", "owned", "results", "state"),
    [
        ({"a": "waiting", "b": "waiting"}, True, False, "starting"),
        ({"a": "waiting", "b": "waiting"}, False, False, "stopped"),
        ({"a": "finished", "b": "evaluating"}, True, False, "running"),
        ({"a": "finished", "b": "not evaluated"}, False, True, "stopped"),
        ({"a": "finished", "b": "failed"}, False, True, "finished"),
        ({"a": "finished", "b": "finished"}, False, True, "finished"),
        ({"a": "finished", "b": "damaged"}, False, True, "finished"),
        ({"a": "finished", "b": "finished"}, True, False, "running"),
    ],
)
def test_the_state_of_a_grid(
    states: dict[str, str], owned: bool, results: bool, state: str, tmp_path: Path, dead: ProcessMark
) -> None:
    """An evaluation that lacks keeps a cell from being finished; failed ones wait for nobody; final ones run last."""
    grid = make_grid(tmp_path / "grid", states, dead, HERE if owned else None)
    if results:
        (grid / "results.json").write_text(json.dumps({"schema": 1, "cells": {}}))
    assert look(grid).state == state


def test_damaged_files_of_a_grid_are_listed_beside_the_cells_that_were_begun(tmp_path: Path, dead: ProcessMark) -> None:
    """It cannot be guessed which cells there should be, so the grid is never finished."""
    grid = make_grid(tmp_path / "grid", {"a": "finished", "b": "failed", "c": "waiting"}, dead)
    (grid / "grid.json").write_text('{"cells": [')
    (grid / "results.json").write_text("[")
    (grid / "cells/b/failure.json").write_text("[" * 100_000)
    state = look(grid)
    assert state.state == "damaged" and (state.cells["finished"], state.cells["failed"]) == (1, 1)
    assert [line for line in state.damaged if "grid.json is damaged" in line] and "results.json" in state.damaged[1]
    assert "failure.json is damaged" in str(state.open_cells[0].problem)


ODD_LINES = {
    "nested": "[" * 100_000,
    "5,000 digits": '{"event": "step", "step": %s, "time": 9, "loss": 1}' % ("9" * 5000),
    "400 digits": '{"event": "step", "step": 3, "time": 9, "loss": 1%s}' % ("0" * 400),
    "1e300": '{"event": "step", "step": 1e300, "time": 9, "loss": 1}',
    "late": '{"event": "step", "step": 60, "time": 1e300, "loss": 1}',
    "a word": '{"event": "step", "step": "six", "time": 9, "loss": 1}',
}


@pytest.mark.parametrize("line", ODD_LINES.values(), ids=ODD_LINES)
def test_one_damaged_line_or_file_of_a_run_is_listed_and_the_rest_is_told(
    line: str, tmp_path: Path, dead: ProcessMark
) -> None:
    run = make_run(tmp_path / "run", dead, 50, time.time() - 20)
    whole = look(run)
    (run / "results.json").write_text(line)
    with (run / "events.jsonl").open("a") as log:
        log.write(line + "\n")
    state = look(run)
    assert whole.damaged == () and (state.state, state.step) == ("stopped", 50)
    assert [Path(sentence.split(":")[0].split(" ")[0]).name for sentence in state.damaged] == [
        "results.json",
        "events.jsonl",
    ]
