"""A run's log survives a crash in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teachonce.core.documents import read_events
from teachonce.runs.log import RunLog


def test_events_are_lines_with_schema_time_and_name(tmp_path: Path) -> None:
    """What is written can be read back, one JSON object a line."""
    file = tmp_path / "events.jsonl"
    log = RunLog(file)
    log.write("step", step=1, loss=0.5)
    log.write("end")
    events = read_events(file)
    assert [event["event"] for event in events] == ["step", "end"]
    assert events[0]["loss"] == 0.5 and events[0]["schema"] == 1 and events[0]["time"] > 1.6e9
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_nan_is_no_json(tmp_path: Path) -> None:
    """A log that other programs cannot parse is not written."""
    with pytest.raises(ValueError, match="JSON"):
        RunLog(tmp_path / "e.jsonl").write("step", loss=float("nan"))


def test_a_torn_last_line_is_passed_over_and_rewound(tmp_path: Path) -> None:
    """A crash leaves half a line: readers skip it, a resumed run drops it and every later step."""
    file = tmp_path / "events.jsonl"
    log = RunLog(file)
    log.write("start")
    for step in (1, 2, 3):
        log.write("step", step=step)
    with open(file, "a") as stream:
        stream.write('{"schema": 1, "event": "st')
    assert [event.get("step") for event in read_events(file)] == [None, 1, 2, 3]
    log.rewind(2)
    log.write("step", step=3)
    assert [event.get("step") for event in read_events(file)] == [None, 1, 2, 3]
    RunLog(tmp_path / "none.jsonl").rewind(3)


def test_a_line_after_a_torn_one_is_not_lost(tmp_path: Path) -> None:
    """A log that goes on after a crash without a rewind loses the torn line only."""
    file = tmp_path / "events.jsonl"
    RunLog(file).write("start")
    with open(file, "a") as stream:
        stream.write('{"schema": 1, "ev')
    RunLog(file).write("end")
    assert [event["event"] for event in read_events(file)] == ["start", "end"]
