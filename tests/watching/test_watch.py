"""What lies beside a store while it is written: read by others, worth nothing when damaged, cleared away at the end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from worlds import Notes

from teachonce.core.progress import Silent
from teachonce.errors import IncompleteError
from teachonce.watching import stop as stop_module
from teachonce.watching import watch as watch_module
from teachonce.watching.beside import STOP, WORKERS, read_beside, remove_beside, write_beside
from teachonce.watching.board import Board
from teachonce.watching.stop import ask_to_stop, heeded, stop_request, withdraw_stop
from teachonce.watching.watch import forget_workers, watched, workers_of
from teachonce.watching.workers import Presence, WorkerMark

MARK = WorkerMark(name="w-1", host="node7", pid=12, device="cpu", memory_bytes=1 << 30)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "a.zarr").mkdir()
    return tmp_path / "a.zarr"


def board_with_a_chunk() -> Board:
    board = Board(("forward",))
    board.take(MARK, 10, 1.0, {"forward": 1.0})
    return board


def test_the_board_lies_beside_the_store_while_a_run_goes_on_and_after_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed, with those whom the scheduler names; another run's is nobody's; signs grow older by themselves."""
    monkeypatch.setattr(watch_module, "KEEP_EVERY_S", 0.02)
    beat = iter(range(10**9))
    with watched(
        store,
        5,
        board_with_a_chunk(),
        lambda: {name: Presence(host="h", memory_bytes=7, beat=next(beat)) for name in ("w-1", "w-2")},
        lambda: 3,
        Silent(),
    ):
        deadline = time.monotonic() + 20
        while len(workers_of(store, 5, time.time())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        mine, other = workers_of(store, 5, time.time()), workers_of(store, 6, time.time())
    assert [(w.name, w.state, w.chunks, w.memory_bytes) for w in mine] == [
        ("w-1", "working", 1, 7),
        ("w-2", "preparing", 0, 7),
    ]
    assert other == ()
    later = workers_of(store, None, time.time() + 3600)
    assert [w.state for w in later] == ["gone", "gone"] and all(w.seconds_since_sign >= 3600 for w in later)
    forget_workers(store)
    assert [path.name for path in store.parent.iterdir()] == ["a.zarr"]


def test_a_board_that_cannot_be_written_is_said_once_and_ends_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "KEEP_EVERY_S", 0.01)
    (store.parent / f"a.zarr{WORKERS}.new").mkdir()  # nothing can be written there
    notes = Notes()
    with watched(store, 5, board_with_a_chunk(), lambda: None, lambda: 3, notes):
        time.sleep(0.1)
    assert len(notes.lines) == 1 and "cannot write" in notes.lines[0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"token": 5}', '{"token": "5", "written": 1, "ended": 1, "workers": 3}']
)
def test_a_damaged_document_is_none(store: Path, text: str) -> None:
    for ending in (WORKERS, STOP):
        (store.parent / f"a.zarr{ending}").write_text(text)
    assert workers_of(store, 5, time.time()) == () and stop_request(store, 5) is None


def test_documents_are_replaced_whole_and_lie_beside_what_a_link_leads_to(store: Path) -> None:
    link = store.parent / "link.zarr"
    link.symlink_to(store)
    write_beside(link, WORKERS, {"path": store})
    write_beside(store, WORKERS, {"number": 2})
    assert read_beside(link, WORKERS) == {"number": 2}
    assert json.loads((store.parent / "a.zarr.workers.json").read_text()) == {"number": 2}
    remove_beside(link, WORKERS)
    remove_beside(link, WORKERS)
    assert read_beside(store, WORKERS) is None


def test_a_run_hears_the_request_that_names_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given before ends; nothing more is handed out; the error says who asked and what to run."""
    monkeypatch.setattr(stop_module, "LOOK_EVERY_S", 0.01)
    notes, done = Notes(), []
    with pytest.raises(IncompleteError, match="2 of 9 chunks") as caught, heeded(store, 5, notes) as stop:
        for item in stop.until_asked(range(9)):
            done.append(item)
            stop.heed("never said")
            if len(done) == 2:
                ask_to_stop(store, 5)
                deadline = time.monotonic() + 20
                while not stop.asked() and time.monotonic() < deadline:
                    time.sleep(0.01)
        stop.heed("2 of 9 chunks are committed")
    assert done == [0, 1] and caught.value.exit_code == 5 and "same command" in caught.value.hint
    assert len(notes.lines) == 1 and "asks this run to stop" in notes.lines[0]
    assert stop_request(store, 5) is None, "what was heeded is cleared away"


def test_a_request_to_an_earlier_run_stops_nobody(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "LOOK_EVERY_S", 0.01)
    ask_to_stop(store, 4)
    assert stop_request(store, 5) is None
    with heeded(store, 5, Silent()) as stop:
        time.sleep(0.1)
        stop.heed("it goes on")
        assert read_beside(store, STOP) is None, "the next owner clears it away"
        ask_to_stop(store, 6)
    assert stop_request(store, 6) is not None, "what names another run is not this one's to remove at its end"
    withdraw_stop(store)
    assert not [thread for thread in threading.enumerate() if thread.name in ("stop-requests", "board")]
