"""What status says of a label store: begun, running, killed, damaged, finished; of something else; from outside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds
from status_folders import AWAY, HERE, dead_process, event, look, make_run, write_lock

from teachonce.core import documents
from teachonce.core.locks import owned
from teachonce.core.machine import ProcessMark, lives
from teachonce.core.progress import Silent
from teachonce.errors import DataError, IncompleteError, IntegrityError, TeachOnceError
from teachonce.labels.status import StoreStatus, store_status
from teachonce.labels.store import LabelStore
from teachonce.stages.status import StatusRequest, status


@pytest.fixture(scope="module")
def dead() -> ProcessMark:
    """A process that has ended."""
    return dead_process()


@pytest.fixture(scope="module")
def half(world: worlds.World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teach that stopped after three of its chunks; never change it, copy it."""
    from teachonce.stages.teach import teach

    path = tmp_path_factory.mktemp("status") / "half.zarr"
    request = worlds.request_for(world, path, teacher, students=(student,), top_k=5)
    with worlds.inline_tasks(order=lambda tasks: tasks[:3]), pytest.raises(IncompleteError):
        teach(request, Silent())
    return path


def test_a_finished_store_says_so(finished: Path) -> None:
    """Its counts are those of the ledger, and its pace that of the commit times."""
    state = status(StatusRequest(folder=finished), Silent())
    store = LabelStore.open(finished)
    records = [record for record in store.records("labels") if record is not None]
    assert isinstance(state, StoreStatus) and (state.kind, state.state) == ("labels", "finished")
    assert (state.chunks, state.chunks_committed) == (worlds.CHUNKS, worlds.CHUNKS)
    assert (state.rows, state.rows_committed) == (worlds.PHOTOS, worlds.PHOTOS)
    assert state.rows_failed == sum(record.rows_failed for record in records)
    assert [group.chunks_committed for group in state.groups] == [worlds.CHUNKS] * 2
    assert state.process is None and state.seconds_left is None and state.estimated_end is None
    span = (records[-1].time_us - records[0].time_us) / 1e6 + sum(records[0].phases.values())
    assert state.rows_per_second == pytest.approx(worlds.PHOTOS / span, rel=0.5)


def test_a_killed_teach_is_stopped_and_says_what_is_left(half: Path) -> None:
    """Three chunks of eight; the rest at the pace so far, but no end: nobody works on it."""
    state = look(half)
    assert (state.state, state.chunks_committed, state.rows_committed) == ("stopped", 3, 3 * worlds.CHUNK_ROWS)
    left = (worlds.PHOTOS - 3 * worlds.CHUNK_ROWS) / state.rows_per_second
    assert state.seconds_left == pytest.approx(left, abs=0.1)
    assert state.estimated_end is None and state.made_by == "teachonce teach" and state.runs == 1


def test_whoever_holds_the_lock_is_named(half: Path, tmp_path: Path, dead: ProcessMark) -> None:
    """Alive here: running, with an end. Dead: stopped. On another machine: running as long as its lock is fresh."""
    store = worlds.copy_store(half, tmp_path)
    with owned(store, Silent()):
        state = look(store)
        assert state.state == "running" and state.estimated_end is not None
        assert state.process is not None and (state.process.pid, state.process.alive) == (os.getpid(), True)
    write_lock(store, dead)
    assert (look(store).state, look(store).process.alive) == ("stopped", False)
    write_lock(store, AWAY)
    assert (look(store).state, look(store).process.alive) == ("running", None)
    write_lock(store, AWAY, age=3600)
    later = time.time() + 7200
    assert store_status(store, later).state == "unknown"


def test_a_teach_that_only_holds_the_lock_is_starting(tmp_path: Path) -> None:
    """Models load for a minute before there is a store."""
    with owned(tmp_path / "new.zarr", Silent()):
        state = look(tmp_path / "new.zarr")
    assert (state.state, state.chunks, state.rows) == ("starting", None, None)
    with pytest.raises(DataError, match="does not exist"):
        look(tmp_path / "new.zarr")


def test_a_finished_store_that_is_still_checked_is_running(finished: Path, tmp_path: Path) -> None:
    """All chunks are there, but the run that reads them back has not said that they are sound."""
    store = worlds.copy_store(finished, tmp_path)
    with owned(store, Silent()):
        assert look(store).state == "running"


def test_a_damaged_ledger_record_is_counted(finished: Path, tmp_path: Path) -> None:
    """One bad record hides one chunk and no more; verify tells which."""
    store = worlds.copy_store(finished, tmp_path)
    (store / "ledger/labels/c/2/0").write_bytes(b"torn")
    state = look(store)
    assert (state.state, state.chunks_committed) == ("stopped", worlds.CHUNKS - 1)
    assert [group.unreadable for group in state.groups] == [1, 0]


def test_a_damaged_header_is_an_integrity_error(finished: Path, tmp_path: Path) -> None:
    """It may be half written for an instant: only after several looks."""
    store = worlds.copy_store(finished, tmp_path)
    (store / "label/zarr.json").write_text("{}")
    with pytest.raises(IntegrityError, match="zarr.json"):
        look(store)


def test_two_runs_of_one_store_have_the_pace_of_the_second(
    half: Path, world: worlds.World, teacher: str, student: str, tmp_path: Path
) -> None:
    """The night between them is no part of it."""
    store = worlds.copy_store(half, tmp_path)
    shift_ledger(store, seconds=36_000)
    worlds.teach_inline(world, store, teacher, students=(student,), top_k=5)
    state = look(store)
    assert (state.state, state.runs) == ("finished", 2)
    assert state.rows_per_second > 1


def shift_ledger(store: Path, seconds: float) -> None:
    """Let what is committed be so much older."""
    import zarr

    for ledger in (store / "ledger").iterdir():
        if ledger.is_dir():
            array = zarr.open_array(str(ledger), mode="r+", zarr_format=3)
            for chunk in range(array.shape[0]):
                row = array[chunk]
                if row[0]:
                    row[2] -= int(seconds * 1e6)
                    array[chunk] = row


def odd_folders(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Something else, a word of the message, a word of the hint."""
    (folder / "empty").mkdir()
    (folder / "file.zarr").write_text("")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "prompts.safetensors").write_bytes(b"")
    make_run(folder / "demo" / "runs" / "first", HERE, 10, time.time())
    (folder / "log").mkdir()
    (folder / "log" / "events.jsonl").write_text(event("cell_start", 1.0, digest="a"))
    yield folder / "nowhere", "does not exist", "check the path"
    yield folder / "empty", "is none of these", "check the path"
    yield folder / "file.zarr", "is a file", str(folder)
    yield folder / "prompts", "finished prompts", "the run"
    yield folder / "demo", "holds such folders", "runs/first"
    yield folder / "log", "is none of these", "check the path"


def test_something_else_is_told_what_was_expected(tmp_path: Path) -> None:
    """Nothing, a file, an empty folder, an export, a folder of runs, a log of something else."""
    for path, message, hint in odd_folders(tmp_path):
        with pytest.raises(DataError) as caught:
            look(path)
        assert message in caught.value.message and hint in caught.value.hint, path
        assert "a label store (OUT.zarr of teach), a run folder" in caught.value.message


def test_a_zarr_group_of_something_else_is_refused(tmp_path: Path) -> None:
    """A store, but not of labels."""
    import zarr

    zarr.open_group(str(tmp_path / "other.zarr"), mode="w", zarr_format=3)
    with pytest.raises(TeachOnceError, match="not a label store"):
        look(tmp_path / "other.zarr")


def test_a_process_of_this_machine_can_be_told_from_another_with_its_number(dead: ProcessMark) -> None:
    """A later process with the same number began at another time; another machine cannot be asked."""
    assert lives(HERE) is True and lives(dead) is False and lives(AWAY) is None
    assert lives(ProcessMark(socket.gethostname(), HERE.pid, HERE.started - 100)) is False


# From another terminal

PROBE = """
import json, sys
from teachonce.cli.app import run
code = run(sys.argv[1:])
heavy = [name for name in ("torch", "zarr", "numpy", "dask") if name in sys.modules]
print(json.dumps([code, heavy]), file=sys.stderr)
"""


def from_outside(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """`teachonce status FOLDER --json` in a process of its own: the document, and what heavy modules it took."""
    command = [sys.executable, "-c", PROBE, "status", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["command"]) == (1, "status")
    return document, heavy


@pytest.mark.slow  # folders of every state are made up for CI
def test_a_run_is_watched_from_another_process_and_then_killed(finished: Path, student: str, tmp_path: Path) -> None:
    """Running, alive, its own pid; after kill -9 stopped. A run folder needs no torch, zarr or NumPy, a store zarr."""
    out = tmp_path / "run"
    settings = ["--set", "threads=1", "--set", "batch_size=16", "--set", "log_every=1", "--steps", "100000"]
    command = [sys.executable, "-m", "teachonce", "train", str(finished), "--student", student, "--out", str(out)]
    train = subprocess.Popen([*command, *settings, "--quiet"], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and train.poll() is None and not (out.is_dir() and look_or_none(out)):
            time.sleep(0.1)
        state, heavy = from_outside(out)
        assert state["state"] == "running" and state["step"] > 0 and state["steps"] == 100_000
        assert state["process"] == {"host": socket.gethostname(), "pid": train.pid, "alive": True}
        assert state["estimated_end"] and state["seconds_left"] > 10
        assert heavy == []
    finally:
        train.kill()
        train.communicate()
    state, _ = from_outside(out)
    assert (state["state"], state["process"]["alive"]) == ("stopped", False)
    state, heavy = from_outside(finished)
    assert state["state"] == "finished" and "torch" not in heavy and "dask" not in heavy


def look_or_none(out: Path) -> bool:
    """Whether the run has logged a step."""
    try:
        return bool(status(StatusRequest(folder=out), Silent()).step)  # type: ignore[union-attr]
    except DataError:
        return False


def test_each_line_of_a_log_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of 20,000 lines costs its length, and no multiple of it."""
    run = make_run(tmp_path / "run", HERE, 10, time.time(), steps=10**6)
    with open(run / "events.jsonl", "a") as log:
        for step in range(20, 200_000, 10):
            log.write(event("step", time.time(), step=step, loss=1.0, hard=0.5, soft=0.5, learning_rate=0.1))
    real, parsed = documents.json_in, []

    def counted(text: str | bytes) -> Any:
        parsed.append(len(text))
        return real(text)

    monkeypatch.setattr(documents, "json_in", counted)
    assert look(run).step == 199_990
    assert 20_000 <= len(parsed) < 20_100
    shutil.rmtree(run)
