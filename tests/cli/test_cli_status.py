"""What `status` shows: each kind of work in a few lines, again and again with --watch, documents with --json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import prompt_stubs
import pytest
import stage_stubs
import store_stubs

import teachonce.stages
from teachonce.cli.views.status import view

Command = Callable[..., Any]

RUN = prompt_stubs.StatusResult(
    state="running",
    process={"host": "box", "pid": 7, "alive": True},
    step=150,
    checkpoint=100,
    held_out={"top1": 0.5, "step": 100, "best_top1": 0.625, "best_step": 50},
    seconds_left=56.0,
    estimated_end="2026-01-01T00:00:56Z",
)
STORE = {
    "kind": "labels",
    "path": "x.zarr",
    "made_by": "teachonce teach",
    "state": "stopped",
    "process": None,
    "chunks": 8,
    "chunks_committed": 2,
    "rows": 800,
    "rows_committed": 200,
    "rows_failed": 3,
    "groups": [
        {"group": "labels", "chunks_committed": 2, "unreadable": 1},
        {"group": "embedding", "chunks_committed": 3, "unreadable": 0},
    ],
    "rows_per_second": 10.0,
    "runs": 1,
    "last_commit": "2026-01-01T00:00:00Z",
    "last_sign": "2026-01-01T00:00:00Z",
    "seconds_since_sign": 3700.0,
    "seconds_left": 60.0,
    "estimated_end": None,
}
CELL = {
    "name": "tail=ghost",
    "digest": "ab",
    "state": "failed",
    "step": 5,
    "steps": 10,
    "steps_per_second": None,
    "seconds_since_sign": 5.0,
    "loss": 1.5,
    "problem": "[red]it broke",
    "hint": "mend it",
}
GRID: dict[str, Any] = {
    "kind": "ablate",
    "path": "grid",
    "title": "t",
    "state": "running",
    "process": None,
    "cells": {"finished": 3, "running": 1, "failed": 1, "damaged": 0, "waiting": 2, "interrupted": 0},
    "open_cells": [CELL],
    "seconds_per_cell": 90.0,
    "last_sign": None,
    "seconds_since_sign": None,
    "seconds_left": None,
    "estimated_end": None,
}


def text_of(values: dict[str, Any], width: int = 100) -> str:
    """What a person reads."""
    from rich.console import Console

    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(view(values))
    return captured.get()


def test_a_run_is_told_in_words(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    stubs.result = RUN
    ended = teachonce_here("status", "run")
    assert ended.code == 0
    for words in (
        "run: train, running",
        "150 of 600 done, 8 steps/s",
        "loss 1.25",
        "top-1 50.00% at step 100",
        "best 62.50% at 50",
        "checkpoint",
        "56s, ends about",
        "7 on box, alive",
        "2s ago",
    ):
        assert words in ended.out, words
    assert all(line == line.rstrip() for line in ended.out.splitlines())


def test_a_store_is_told_in_words() -> None:
    text = text_of(STORE)
    for words in (
        "stopped: nobody works on it",
        "2 of 8 committed",
        "200 of 800, 3 failed, 10 rows/s",
        "embedding 3",
        "1 ledger records",
        "1m 00s at this pace",
        "1h 01m ago",
        "the same `teachonce teach` again goes on from here",
    ):
        assert words in text, words
    assert "only reads all chunks back" in text_of(STORE | {"chunks_committed": 8})
    nothing = STORE | {"chunks": None, "rows": None, "groups": [], "rows_per_second": None, "state": "starting"}
    assert "none yet" in text_of(nothing)


def test_workers_and_a_request_to_stop_are_told_in_words() -> None:
    """A line a worker: who, where, on what, how fast, with what, and who is slow."""
    gone = store_stubs.WORKER | {"name": "gpu-9", "state": "gone", "device": None, "memory_bytes": None, "shares": {}}
    text = text_of(STORE | {"workers": [store_stubs.WORKER, gone], "seconds_since_stop": 5.0}, width=160)
    for words in ("gpu-3", "node7", "cuda:0 NVIDIA H200", "12.5", "forward 75%, wait 25%", "3.0 GiB", "4s ago", "slow"):
        assert words in text, words
    assert "gone" in text and "asked for 5s ago" in text
    assert "workers" not in text_of(STORE)


def test_a_grid_is_told_in_words() -> None:
    text = text_of(GRID)
    for words in (
        "3 of 7 finished",
        "1 running, 1 failed, 2 waiting",
        "1m 30s",
        "tail=ghost",
        "5/10",
        "[red]it broke (mend it)",
    ):
        assert words in text, words
    damaged = GRID | {"cells": {**GRID["cells"], "waiting": 1, "damaged": 1}}
    assert "3 of 7 finished" in text_of(damaged) and "1 failed, 1 damaged, 1 waiting" in text_of(damaged)
    search = GRID | {"cells": {**GRID["cells"], "dropped": 4}}
    assert "3 of 11 finished" in text_of(search) and "2 waiting, 4 ended early by the search" in text_of(search)


@pytest.mark.parametrize("json_wanted", [False, True])
def test_watch_looks_again_until_the_work_is_over(
    json_wanted: bool, teachonce_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block or one document a look; nothing is left of an earlier one."""
    looks = [replace(RUN, step=100), RUN, replace(RUN, state="finished", step=600)]
    waits: list[float] = []
    monkeypatch.setattr(teachonce.stages.status, "status", lambda request, reporter: looks.pop(0))
    monkeypatch.setattr(time, "sleep", waits.append)
    ended = teachonce_here("status", "run", "--watch", "2.5", *(["--json"] if json_wanted else []))
    assert ended.code == 0 and waits == [2.5, 2.5] and not looks
    if json_wanted:
        documents = [json.loads(line) for line in ended.out.splitlines()]
        assert [document["step"] for document in documents] == [100, 150, 600]
        assert all(document["command"] == "status" and document["schema"] == 1 for document in documents)
    else:
        assert [word in ended.out for word in ("100 of 600", "150 of 600", "600 of 600")] == [True] * 3


def test_without_watch_it_looks_once(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    stubs.result = RUN
    teachonce_here("status", "run")
    assert len(stubs.requests) == 1


def test_too_short_a_pause_is_refused(teachonce_here: Command) -> None:
    assert teachonce_here("status", "run", "--watch", "0").code == 2
