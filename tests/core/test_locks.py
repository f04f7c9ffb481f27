"""The owner lock lets one writer in, and the lock of a dead process is reclaimed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from worlds import Notes

from teachonce.core.locks import LockOwner, exclusive, lock_path, owned, read_owner, require_token, shared
from teachonce.core.machine import lives, process_start, this_process
from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError


def write_lock(store: Path, **fields: Any) -> None:
    """Put a lock file there as another process would."""
    me = psutil.Process()
    owner = {"host": socket.gethostname(), "pid": me.pid, "started": process_start(me.pid), "token": 1} | fields
    lock_path(store).write_text(json.dumps(owner))


def test_the_lock_is_held_and_freed(tmp_path: Path) -> None:
    """While it is held the owner can be read and the token is accepted; afterwards nothing is left."""
    store = tmp_path / "a.zarr"
    with owned(store, Silent()) as token:
        owner = read_owner(store)
        assert owner is not None and (owner.pid, owner.token) == (os.getpid(), token)
        require_token(store, token)
        with pytest.raises(IncompleteError, match="no longer owns the store"):
            require_token(store, token + 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IncompleteError):
        require_token(store, token)


def test_a_living_owner_is_named(tmp_path: Path) -> None:
    """Process, host, age of the last sign of life, and what to do."""
    store = tmp_path / "a.zarr"
    with owned(store, Silent()), pytest.raises(IncompleteError) as caught, owned(store, Silent()):
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value) and "last sign 0 s" in str(
        caught.value
    )
    assert "`force_unlock`" in caught.value.hint


def a_dead_process() -> tuple[int, float]:
    """Pid and start of a process that ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start(child.pid)
    child.communicate(b"\n")
    return child.pid, started


def test_the_lock_of_a_dead_process_is_reclaimed(tmp_path: Path) -> None:
    """A killed run does not block the next one, and that is said."""
    pid, started = a_dead_process()
    write_lock(tmp_path / "a.zarr", pid=pid, started=started)
    notes = Notes()
    with owned(tmp_path / "a.zarr", notes) as token:
        require_token(tmp_path / "a.zarr", token)
    assert len(notes.lines) == 1 and f"dead process ({pid})" in notes.lines[0]


def test_a_pid_that_was_given_to_another_process_is_dead(tmp_path: Path) -> None:
    """Pids are reused; the start time tells."""
    write_lock(tmp_path / "a.zarr", started=process_start(os.getpid()) - 1000)
    with owned(tmp_path / "a.zarr", Silent()):
        pass


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    """In a container nobody may reap a killed run; its pid stays, but it will never write again."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        process = psutil.Process(child.pid)
        write_lock(tmp_path / "a.zarr", pid=child.pid, started=process_start(child.pid))
        child.kill()
        deadline = time.monotonic() + 20
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        with owned(tmp_path / "a.zarr", Silent()):
            pass
    finally:
        child.communicate()


def test_another_hosts_lock_needs_force(tmp_path: Path) -> None:
    """Whether its process lives cannot be known here: refused, until the person says so."""
    store = tmp_path / "a.zarr"
    write_lock(store, host="elsewhere", pid=1)
    with pytest.raises(IncompleteError, match="process 1 on elsewhere"), owned(store, Silent()):
        pass
    with owned(store, Silent(), force=True) as token:
        require_token(store, token)
    assert not lock_path(store).exists()


HERE = this_process()


@pytest.mark.parametrize(
    "elsewhere",
    [{"namespace": "pid:[1]"}, {"boot": "another"}, {"namespace": "pid:[1]", "host": "container"}],
    ids=["another container", "another machine of this name", "another container with a name"],
)
def test_an_owner_whose_pid_means_nothing_here_lives_as_long_as_it_gives_signs(
    elsewhere: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pids of other containers are others' here; the owner's own signs of life decide, whatever the clocks say."""
    monkeypatch.setattr("teachonce.core.locks.HEARTBEAT_S", 0.1)
    store = tmp_path / "a.zarr"
    write_lock(store, **({"pid": 2**22 + 1, "namespace": HERE.namespace, "boot": HERE.boot} | elsewhere))
    with pytest.raises(IncompleteError, match="is being written by process"), owned(store, Silent()):
        pass
    os.utime(lock_path(store), (1, 1))  # a clock that is wrong by years, and an owner that lives
    signs = threading.Timer(0.1, os.utime, [lock_path(store), (2, 2)])
    signs.start()
    with pytest.raises(IncompleteError, match="is being written by process"), owned(store, Silent()):
        pass
    signs.join()
    os.utime(lock_path(store), (1, 1))
    notes = Notes()
    with owned(store, notes):
        assert read_owner(store) != HERE
    assert "reclaimed the lock" in notes.lines[0]


def test_a_pid_counts_wherever_it_means_something_whatever_the_host_is_called() -> None:
    assert lives(HERE) is True
    assert lives(dataclasses.replace(HERE, host="renamed")) is True
    assert lives(dataclasses.replace(HERE, started=HERE.started - 1000)) is False
    assert lives(dataclasses.replace(HERE, namespace="", boot="")) is True, "a mark of an earlier version"
    assert lives(dataclasses.replace(HERE, namespace="", boot="", host="elsewhere")) is None
    assert lives(dataclasses.replace(HERE, pid=-1)) is False
    assert lives(dataclasses.replace(HERE, pid=10**30)) is False


def test_two_names_of_a_store_are_one_lock(tmp_path: Path) -> None:
    """A link to the store, a link in its folder's path, a link to a store that is not there yet."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.zarr").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "disk" / "a.zarr")
    (tmp_path / "way").symlink_to(tmp_path / "disk")
    (tmp_path / "new.zarr").symlink_to(tmp_path / "disk" / "b.zarr")
    with owned(tmp_path / "link.zarr", Silent()) as token:
        for other in (tmp_path / "disk" / "a.zarr", tmp_path / "way" / "a.zarr"):
            require_token(other, token)
            with pytest.raises(IncompleteError, match="is being written"), owned(other, Silent()):
                pass
    with owned(tmp_path / "new.zarr", Silent()) as token:
        require_token(tmp_path / "disk" / "b.zarr", token)
    assert sorted(item.name for item in tmp_path.rglob("*.lock")) == []


@pytest.mark.parametrize("text", ['{"host": 1, "pid": "x", "started": [], "token": 0}', "[1]", '{"host": "a"}'])
def test_a_lock_file_of_another_form_owns_nothing(text: str, tmp_path: Path) -> None:
    lock_path(tmp_path / "a.zarr").write_text(text)
    assert read_owner(tmp_path / "a.zarr") is None
    with owned(tmp_path / "a.zarr", Silent()):
        pass


def test_what_was_killed_while_it_took_a_lock_leaves_no_file(tmp_path: Path) -> None:
    """The owner writes its name down before it holds the lock."""
    left = tmp_path / "a.zarr.lock.1f"
    left.write_text("{}")
    os.utime(left, (1, 1))
    (tmp_path / "a.zarr.lock.notes").write_text("mine")
    with owned(tmp_path / "a.zarr", Silent()):
        pass
    assert os.listdir(tmp_path) == ["a.zarr.lock.notes"]


def test_a_run_that_lost_its_lock_does_not_remove_the_new_one(tmp_path: Path) -> None:
    """After --force-unlock elsewhere, the old run's end leaves the new owner's lock alone."""
    store = tmp_path / "a.zarr"
    with owned(store, Silent()) as old:
        write_lock(store, token=77)
        with pytest.raises(IncompleteError):
            require_token(store, old)
    assert read_owner(store) is not None


def test_a_damaged_lock_file_is_reclaimed(tmp_path: Path) -> None:
    """Nothing in it can own a store."""
    lock_path(tmp_path / "a.zarr").write_text("{")
    with owned(tmp_path / "a.zarr", Silent()):
        assert isinstance(read_owner(tmp_path / "a.zarr"), LockOwner)


def test_the_lock_shows_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is touched again and again while it is held."""
    monkeypatch.setattr("teachonce.core.locks.HEARTBEAT_S", 0.05)
    with owned(tmp_path / "a.zarr", Silent()):
        os.utime(lock_path(tmp_path / "a.zarr"), (1, 1))
        deadline = time.monotonic() + 10
        while lock_path(tmp_path / "a.zarr").stat().st_mtime < 100 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock_path(tmp_path / "a.zarr").stat().st_mtime > 100


def race(store: Path, barrier: Any, results: Any, trials: int, stale: tuple[int, float]) -> None:
    """One contender: at each trial, take the lock; the winner keeps it until both have tried."""
    for trial in range(trials):
        target = store.with_name(f"{trial}.zarr")
        if barrier.wait(60) == 0 and trial % 2:
            write_lock(target, pid=stale[0], started=stale[1])  # a dead run's lock: both must reclaim it
        barrier.wait(60)
        try:
            with owned(target, Silent()):
                results.put((trial, "won"))
                barrier.wait(60)
        except IncompleteError as problem:
            results.put((trial, str(problem)))
            barrier.wait(60)


def test_two_processes_never_both_win(tmp_path: Path) -> None:
    """Fault 5: 20 trials with one start signal, half of them over a dead run's lock: one winner each."""
    context = multiprocessing.get_context("spawn")
    barrier, results, trials = context.Barrier(2), context.Queue(), 20
    args = (tmp_path / "x.zarr", barrier, results, trials, a_dead_process())
    both = [context.Process(target=race, args=args) for _ in range(2)]
    for process in both:
        process.start()
    collected = [results.get(timeout=120) for _ in range(2 * trials)]
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    for trial in range(trials):
        outcomes = sorted(outcome for number, outcome in collected if number == trial)
        assert outcomes.count("won") == 1, (trial, outcomes)
        assert "is being written by process" in next(o for o in outcomes if o != "won")
    results.close()
    results.join_thread()


def test_taking_turns_never_overlaps(tmp_path: Path) -> None:
    """Many short holds: a lock freed while another looks at it is not taken away from a third."""
    store, inside = tmp_path / "a.zarr", tmp_path / "inside"
    overlaps: list[object] = []
    wins: list[int] = []
    stop = time.monotonic() + 3

    def contend() -> None:
        while time.monotonic() < stop:
            try:
                with owned(store, Silent()):
                    try:
                        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        overlaps.append("two inside")
                        continue
                    wins.append(1)
                    inside.unlink()
            except IncompleteError:
                continue
            except Exception as problem:  # noqa: BLE001 - a thread's traceback would be lost
                overlaps.append(problem)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [] and len(wins) > 50


def test_a_lock_taken_between_a_look_and_a_removal_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner frees the lock and another takes it just before a third would clear it away: never two inside."""
    import teachonce.core.locks as module

    store, looks, inside, done = tmp_path / "a.zarr", [], threading.Event(), threading.Event()
    write_lock(store)
    real, first = module.read_owner, threading.current_thread()

    def other() -> None:
        with suppress(IncompleteError), owned(store, Silent()):
            inside.set()
            done.wait(10)
            inside.clear()

    thread = threading.Thread(target=other)

    def look(path: Path) -> LockOwner | None:
        if threading.current_thread() is not first:
            return real(path)
        looks.append(1)
        if len(looks) == 1:
            lock_path(path).unlink()  # freed, right after it was found taken
        owner = real(path)
        if len(looks) == 2:
            thread.start()  # another comes, right after the second look
            inside.wait(0.5)
        return owner

    monkeypatch.setattr(module, "read_owner", look)
    try:
        with suppress(IncompleteError), owned(store, Silent()):
            time.sleep(0.2)
            assert not inside.is_set(), "two processes own the store"
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_does_not_free_the_lock(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock is set by a day while a run holds the store: it still does, and a dead one is still dead."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_lock(tmp_path / "a.zarr", pid=child.pid, started=process_start(child.pid))
    now, born = time.time, psutil.Process.create_time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: born(process) + jump)
    with (
        pytest.raises(IncompleteError, match=f"process {child.pid}"),
        owned(tmp_path / "a.zarr", Silent()),
    ):
        pass
    child.communicate(b"\n")
    with owned(tmp_path / "a.zarr", Silent()):
        pass


def test_a_file_is_held_by_one_alone_or_by_several_together(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with exclusive(path) as absent, shared(path) as also:
        assert absent is also is None and not path.exists(), "nothing is made that was not asked for"
    with exclusive(path, create=True) as held, exclusive(path, wait=False) as refused:
        assert held is not None and refused is None
    with shared(path) as first, shared(path) as second, exclusive(path, wait=False) as refused:
        assert first is not None and second is not None and refused is None
    with exclusive(path, wait=False) as free:
        assert free is not None


def test_a_lock_ends_with_its_block_however_that_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "file", create=True):
        raise KeyboardInterrupt
    with exclusive(tmp_path / "file", wait=False) as free:
        assert free is not None
