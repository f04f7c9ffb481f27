"""What goes to TensorBoard is what events.jsonl holds, each step once, whatever happened to earlier attempts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.documents import read_events
from teachonce.errors import EnvironmentFault
from teachonce.runs.log import RunLog
from teachonce.runs.tensorboard import TensorBoardSink, open_sinks, require_packages

STEPS = {"train/loss": "loss", "train/gradient_norm": "gradient_norm", "train/learning_rate": "learning_rate"}


def curves(run: Path) -> dict[str, list[tuple[int, float, float]]]:
    """(step, value, time) of every curve, as TensorBoard's own reader shows them."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(e.step, e.value, e.wall_time) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def log_of(run: Path) -> RunLog:
    """A log that also goes to TensorBoard."""
    return RunLog(run / "events.jsonl", open_sinks(["tensorboard"], run))


def write_steps(log: RunLog, first: int, last: int) -> None:
    """Steps with made-up figures; every third is measured on held-out samples."""
    for step in range(first, last + 1):
        log.write("step", step=step, loss=1 / step, gradient_norm=2.0 * step, learning_rate=0.5, forced=8)
        if step % 3 == 0:
            log.write("held_out", step=step, top1=step / 10, rows=40)


def require_equal(run: Path) -> None:
    """TensorBoard shows what events.jsonl holds."""
    drawn, events = curves(run), read_events(run / "events.jsonl")
    for tag, name in STEPS.items():
        logged = [(e["step"], e[name]) for e in events if e["event"] == "step"]
        assert [(step, value) for step, value, _ in drawn[tag]] == [(s, pytest.approx(v)) for s, v in logged]
    times = [e["time"] for e in events if e["event"] == "step"]
    assert [time for _, _, time in drawn["train/loss"]] == pytest.approx(times)
    logged = [(e["step"], e["top1"]) for e in events if e["event"] == "held_out"]
    assert [(step, value) for step, value, _ in drawn["held_out/top1"]] == [(s, pytest.approx(v)) for s, v in logged]


def test_every_figure_of_a_run_can_be_read_back(tmp_path: Path) -> None:
    """Losses, gradient norm, learning rate, held-out accuracy; with the time they were logged at; nothing else."""
    with closing(log_of(tmp_path)) as log:
        log.clear()
        log.write("start", step=0, steps=7)
        log.write("pairing", step=0, rows_proved=70)
        write_steps(log, 1, 7)
    require_equal(tmp_path)
    assert set(curves(tmp_path)) == {*STEPS, "train/forced", "held_out/top1", "held_out/rows"}


@pytest.mark.parametrize("back_to", [0, 2, 5, 7])
def test_a_resumed_run_has_each_step_once(back_to: int, tmp_path: Path) -> None:
    """Steps after the checkpoint are logged again, with other values here: the old ones are gone; twice over."""
    with closing(log_of(tmp_path)) as log:
        write_steps(log, 1, 7)
    for reached in (9, 11):
        with closing(log_of(tmp_path)) as log:
            log.rewind(back_to)
            write_steps(log, back_to + 1, reached)
        require_equal(tmp_path)


def test_a_resumed_run_brings_in_what_tensorboard_has_not_seen(tmp_path: Path) -> None:
    """Whoever asks for it late, or lost the end of its file, has the whole curve all the same."""
    write_steps(RunLog(tmp_path / "events.jsonl"), 1, 4)
    with closing(log_of(tmp_path)) as log:
        log.rewind(4)
        write_steps(log, 5, 6)
    require_equal(tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    with closing(log_of(tmp_path)) as log:
        log.rewind(6)
        write_steps(log, 7, 7)
    require_equal(tmp_path)


def test_a_viewer_that_has_read_earlier_attempts_drops_what_is_void(tmp_path: Path) -> None:
    """It goes on from the old file to the new one, which comes later by name and says what no longer holds."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with closing(log_of(tmp_path)) as log:
        write_steps(log, 1, 7)
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.rename(old.with_name("events.out.tfevents.0000000000.x"))  # of an earlier second
    viewer = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    viewer.Reload()
    with closing(log_of(tmp_path)) as log:
        log.rewind(4)
        write_steps(log, 5, 6)
    viewer.Reload()
    assert [e.step for e in viewer.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_clock_that_was_set_back_doubles_nothing(tmp_path: Path) -> None:
    """The file of an earlier attempt, made in what is now the future, would be read last."""
    with closing(log_of(tmp_path)) as log:
        write_steps(log, 1, 7)
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.rename(old.with_name("events.out.tfevents.9999999999.x"))
    with closing(log_of(tmp_path)) as log:
        log.rewind(4)
        write_steps(log, 5, 6)
    require_equal(tmp_path)


def test_nothing_is_lost_by_a_kill(tmp_path: Path) -> None:
    """Every event has left the process when `write` returns."""
    log = log_of(tmp_path)
    write_steps(log, 1, 3)
    require_equal(tmp_path)
    log.close()


def test_nothing_is_written_before_there_is_a_figure(tmp_path: Path) -> None:
    """A folder with only the start of a run is not spoilt for the next attempt."""
    with closing(log_of(tmp_path)) as log:
        log.clear()
        log.write("start", step=0)
    assert [file.name for file in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is asked for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="tensorboard is not installed") as caught:
        require_packages(["tensorboard"])
    assert caught.value.hint == "pip install 'teachonce[tensorboard]'"
    require_packages([])


def test_a_sink_is_asked_for_once(tmp_path: Path) -> None:
    """Naming it twice does not double its curves."""
    (sink,) = open_sinks(["tensorboard", "tensorboard"], tmp_path)
    assert isinstance(sink, TensorBoardSink)


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def start(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Remember the events."""
        self.calls.append(("start", [event.get("step") for event in events]))

    def write(self, event: Mapping[str, Any]) -> None:
        """Remember the event as JSON has it."""
        self.calls.append(("write", json.loads(json.dumps(event))))

    def close(self) -> None:
        """Remember the end."""
        self.calls.append(("close", None))


def test_any_sink_hears_what_the_file_holds(tmp_path: Path) -> None:
    """Start over, each line as written, what a rewind keeps, the end."""
    sink = Kept()
    log = RunLog(tmp_path / "events.jsonl", [sink])
    log.clear()
    log.write("step", step=1, loss=0.5)
    log.write("step", step=2, loss=0.25)
    log.rewind(1)
    log.close()
    events = [event for what, event in sink.calls if what == "write"]
    assert [what for what, _ in sink.calls] == ["start", "write", "write", "start", "close"]
    assert sink.calls[0][1] == [] and sink.calls[3][1] == [1]
    assert events[0] == read_events(tmp_path / "events.jsonl")[0]
