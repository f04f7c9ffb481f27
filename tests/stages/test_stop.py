"""stop: a run that writes a store ends after the chunks under way; its command typed again makes the same store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from patience import seconds
from status_folders import AWAY, HERE, dead_process, look, write_lock
from worlds import CHUNKS, Notes, World, all_arrays

from teachonce.core.locks import owned
from teachonce.core.progress import Silent
from teachonce.errors import DataError, IncompleteError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.stages.stop import StopRequest, StopResult, stop
from teachonce.stages.teach import teach
from teachonce.watching import stop as requests
from teachonce.watching.stop import ask_to_stop, heeded


def asked(store: Path, wait: bool = False) -> StopResult:
    return stop(StopRequest(labels=store, wait=wait), Silent())


def require_same(store: Path, other: Path) -> None:
    """The same id and the same bits."""
    assert LabelStore.open(store).store_id() == LabelStore.open(other).store_id()
    arrays, wanted = all_arrays(store), all_arrays(other)
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[name], wanted[name], equal_nan=wanted[name].dtype.kind == "f") for name in wanted)


def test_a_teach_that_is_asked_to_stop_commits_what_is_under_way_and_goes_on_later(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """Three chunks were handed out before the request: they are kept, and who computed them stays known."""
    path, said = tmp_path / "a.zarr", []
    request = worlds.request_for(world, path, teacher, students=(student,), top_k=5)

    def three_then_stop(tasks: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        yield from tasks[:3]
        said.append(asked(path))
        yield from tasks[3:]

    with worlds.inline_tasks(order=three_then_stop), pytest.raises(IncompleteError) as caught:
        teach(request, Notes())
    assert f"3 of {CHUNKS} chunks are committed" in caught.value.message and caught.value.exit_code == 5
    assert "same command goes on" in caught.value.hint
    assert (said[0].process.pid, said[0].process.alive, said[0].ended) == (os.getpid(), True, False)
    assert "exit 5" in said[0].said
    state = look(path)
    assert (state.state, state.chunks_committed) == ("stopped", 3)
    assert [(w.state, w.chunks, w.rows, w.pid) for w in state.workers] == [
        ("gone", 3, 3 * worlds.CHUNK_ROWS, os.getpid())
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "a.zarr.workers.json"]
    with worlds.inline_tasks():
        result = teach(request, Silent())
    require_same(path, finished)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"], "nothing of it stays beside a finished store"
    (worker,) = result.workers
    assert (worker.chunks, worker.device, worker.host) == (CHUNKS - 3, "cpu", HERE.host)
    assert worker.rows_per_second > 0 and sum(worker.shares.values()) == pytest.approx(1) and worker.memory_bytes > 1e6


def test_where_nobody_writes_there_is_nothing_to_stop(finished: Path, tmp_path: Path) -> None:
    """Finished, owned by a process that has ended, not there, something else: refused, and nothing is left behind."""
    store = worlds.copy_store(finished, tmp_path)
    ask_to_stop(store, 1)  # of somebody who asked too late
    with pytest.raises(UsageError, match="nobody writes"):
        asked(store)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]
    write_lock(store, dead_process())
    with pytest.raises(UsageError, match="has ended"):
        asked(store)
    with pytest.raises(UsageError, match="nobody writes"):
        asked(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no label store"):
        asked(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.zarr", "copy.zarr.lock", "folder"]


def test_a_process_on_another_machine_is_asked_and_waited_for_while_it_gives_signs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = worlds.copy_store(finished, tmp_path)
    write_lock(store, AWAY)
    assert asked(store).process.alive is None and look(store).seconds_since_stop is not None
    monkeypatch.setattr("teachonce.stages.stop.work.SILENT_S", 1.0)
    with seconds(30), pytest.raises(IncompleteError, match="has given no sign"):
        asked(store, wait=True)


def test_waiting_ends_with_the_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--wait` comes back when the lock is free, and says what is committed."""
    monkeypatch.setattr(requests, "LOOK_EVERY_S", 0.01)
    store, began = worlds.copy_store(finished, tmp_path), threading.Event()

    def run() -> None:
        with owned(store, Silent()) as token, heeded(store, token, Silent()) as watch:
            began.set()
            while not watch.asked():
                time.sleep(0.01)

    run_beside = threading.Thread(target=run)
    run_beside.start()
    with seconds(30):
        assert began.wait(20)
        result = asked(store, wait=True)
    run_beside.join()
    assert (result.ended, result.chunks_committed, result.chunks) == (True, CHUNKS, CHUNKS)
    assert f"{CHUNKS} of {CHUNKS} chunks are committed" in result.said
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]


class StopsAtFirst(Silent):
    """A reporter that asks for the end when the first chunk is done, and waits until the run has heard it."""

    def __init__(self, store: Path) -> None:
        self.store, self.said = store, False

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        if what == "label" and not self.said:
            self.said = True
            asked(self.store)
            time.sleep(0.5)


def test_relabel_heeds_it(world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `merge`, which fills its store by the same loop."""
    from teachonce.stages.relabel import RelabelRequest, relabel

    monkeypatch.setattr(requests, "LOOK_EVERY_S", 0.01)
    worlds.teach_inline(world, tmp_path / "parent.zarr", teacher, top_k=5, embeddings="int8")
    child = tmp_path / "child.zarr"
    request = RelabelRequest(parent=tmp_path / "parent.zarr", labels=child, top_k=3)
    with worlds.inline_tasks():
        with pytest.raises(IncompleteError, match=f"1 of {CHUNKS} chunks are committed"):
            relabel(request, StopsAtFirst(child))
        result = relabel(request, Silent())
    assert (result.chunks_skipped, result.chunks_written) == (1, CHUNKS - 1)


@pytest.mark.slow  # two runs of the command with two workers each
def test_two_terminals(world: World, teacher: str, student: str, finished: Path, tmp_path: Path) -> None:
    """One teaches, the other looks and stops it; exit 5; the same command completes the same store."""
    store = tmp_path / "a.zarr"
    command = [sys.executable, "-m", "teachonce", "teach", str(world.root / "wds.toml"), "--root", str(world.root)]
    command += ["--teacher", teacher, "--student", student, "--labels", str(store), "--top-k", "5", "--workers", "2"]
    command += ["--chunk-rows", str(worlds.CHUNK_ROWS), "--set", "batch_size=4", "--set", "threads=1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 120
            while not store.with_name("a.zarr.workers.json").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            other = [sys.executable, "-m", "teachonce", "stop", str(store), "--wait", "--json"]
            done = subprocess.run(other, capture_output=True, text=True, timeout=120, check=False)
            _, problem = run.communicate(timeout=60)
        finally:
            run.kill()
    assert (run.returncode, done.returncode) == (5, 0), (problem, done.stderr)
    said = json.loads(done.stdout)
    assert said["ended"] and said["process"]["pid"] == run.pid and 0 <= said["chunks_committed"] < CHUNKS
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    workers = json.loads(again.stdout)["workers"]
    assert sum(worker["chunks"] for worker in workers) == CHUNKS - said["chunks_committed"]
    assert {worker["name"] for worker in workers} == {"0", "1"} and all(worker["memory_bytes"] for worker in workers)
    require_same(store, finished)
