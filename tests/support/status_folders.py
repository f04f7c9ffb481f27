"""Folders as teach, train and ablate leave them, written by hand, for tests of what looks at them from outside.

It tests nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from teachonce.core.locks import lock_path
from teachonce.core.machine import ProcessMark, process_start, this_process
from teachonce.core.progress import Silent
from teachonce.stages.status import StatusRequest, status

HERE = this_process()
AWAY = ProcessMark("another-host", HERE.pid, HERE.started)


def dead_process() -> ProcessMark:
    """A process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        return ProcessMark(HERE.host, child.pid, process_start(child.pid))


def look(folder: Path) -> Any:
    """The status of a folder; looking changes nothing in it or beside it."""
    before = state_of_files(folder.parent)
    result = status(StatusRequest(folder=folder), Silent())
    assert state_of_files(folder.parent) == before
    assert json.loads(json.dumps(asdict(result), allow_nan=False))
    return result


def state_of_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder."""
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()}


def write_lock(store: Path, owner: ProcessMark, age: float = 0.0) -> None:
    """A lock as `owned` writes it."""
    lock_path(store).write_text(json.dumps({**vars(owner), "token": 1}))
    os.utime(lock_path(store), (time.time() - age,) * 2)


def event(kind: str, at: float, **fields: Any) -> str:
    """A line of events.jsonl."""
    return json.dumps({"schema": 1, "time": at, "event": kind, **fields}) + "\n"


def make_run(folder: Path, mark: ProcessMark | None, reached: int, began: float, steps: int = 100) -> Path:
    """A run that logged every tenth step, ten steps in two seconds; `mark` has its lock."""
    (folder / "checkpoints").mkdir(parents=True)
    if mark is not None:
        (folder / ".teachonce.lock").write_text(json.dumps(vars(mark)))
    lines = [event("start", began, step=0, steps=steps), event("pairing", began, step=0)]
    for step in range(10, reached + 1, 10):
        lines.append(
            event(
                "step",
                began + step / 5,
                step=step,
                loss=2.0,
                hard=1.5,
                soft=0.5,
                learning_rate=0.02,
                gradient_norm=0.25,
                candidates=8,
                forced=8,
            )
        )
        if step % 20 == 0:
            lines.append(event("held_out", began + step / 5, step=step, top1=0.5 - abs(step - 40) / 100, rows=9))
    (folder / "events.jsonl").write_text("".join(lines))
    (folder / "config.toml").write_text(f"steps = {steps}\n")
    (folder / "checkpoints" / f"step-{reached // 20 * 20:08d}.safetensors").write_bytes(b"")
    return folder


def make_grid(folder: Path, cells: dict[str, str], dead: ProcessMark, owner: ProcessMark | None = None) -> Path:
    """A grid folder with one cell a name, in the given state; finished cells took 20 s for 100 steps.

    Token 1 is that of the `owner`, if there is one; token 2 that of an earlier driver, which died.
    """
    folder.mkdir()
    listed, events = [], []
    for digest, state in cells.items():
        document = {
            "digest": digest,
            "name": f"cell {digest}",
            "group": "g",
            "changes": {},
            "seed": 0,
            "is_base": False,
            "config": {"steps": 100},
            "data": {},
            "no_effect": [],
        }
        listed.append(document)
        cell = folder / "cells" / digest
        if state == "waiting":
            continue
        at_work = state in ("running", "again", "evaluating")
        events += [event("cell_start", 1.0, digest=digest, token=2)]
        events += [event("cell_start", 2.0, digest=digest, token=1)] if at_work else []
        reached = 100 if state in ("finished", "damaged", "not evaluated", "evaluating") else 50
        make_run(cell, HERE if at_work else dead, reached, time.time() - 20)
        (cell / "cell.json").write_text(json.dumps(document))
        if state in ("failed", "again"):
            (cell / "failure.json").write_text(
                json.dumps({"schema": 1, "kind": "UsageError", "message": "it broke", "hint": "mend it", "time": 1.0})
            )
        if reached == 100:
            results = {"schema": 1, "steps": 100, "trainable_parameters": 8, "seconds": 20.0}
            results |= {"prompts_digest": sha256(b"prompts").hexdigest()}
            (cell / "results.json").write_text(json.dumps(results))
            (cell / "prompts.safetensors").write_bytes(b"edited" if state == "damaged" else b"prompts")
        if state in ("finished", "damaged"):
            (cell / "evaluations").mkdir()
            (cell / "evaluations/dev.json").write_text('{"schema": 1}')
            events += [event("cell_done", 3.0, digest=digest, token=2, seconds=20.0)]
    evaluations = [{"name": "dev", "manifest": "m"}, {"name": "test", "manifest": "m", "only": "chosen"}]
    (folder / "grid.json").write_text(
        json.dumps({"schema": 1, "title": "a grid", "cells": listed, "evaluations": evaluations})
    )
    (folder / "events.jsonl").write_text("".join(events))
    if owner is not None:
        write_lock(folder / "grid.json", owner)
    return folder
