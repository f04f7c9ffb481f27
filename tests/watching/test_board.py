"""What a board says of workers: paces by the reports' own times, slow and silent ones by name, once."""

from __future__ import annotations

import pytest

from teachonce.watching.board import BUSY_CHUNKS, ENOUGH, LOADING, RECENT, STALLED_S, Board
from teachonce.watching.workers import Presence, WorkerMark

PHASES = ("wait", "forward")


class Clock:
    """Seconds as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def mark(name: str, memory: int = 100, pid: int = 7) -> WorkerMark:
    return WorkerMark(name=name, host=f"host-of-{name}", pid=pid, device="cpu", memory_bytes=memory)


def deliver(board: Board, clock: Clock, name: str, chunks: int, seconds: float, rows: int = 10) -> None:
    """Chunks one after the other, each of which took so long."""
    for _ in range(chunks):
        clock.now += seconds
        board.take(mark(name), rows, seconds, {"wait": seconds / 4, "forward": 3 * seconds / 4, "read": 99.0})


def test_a_pace_is_rows_over_the_time_from_the_first_begin_to_the_last_end() -> None:
    """Two tasks at a time: 6 chunks of 10 rows, each of 4 s, one every 2 s, take 14 s; the loading is left out."""
    clock = Clock()
    board = Board(PHASES, clock)
    for chunk in range(LOADING + 6):
        clock.now = 2000.0 + 100 + 2 * chunk
        seconds = 100.0 if chunk < LOADING else 4.0
        board.take(mark("a", memory=chunk), 10, seconds, {"wait": 1.0, "forward": 3.0})
    (pace,) = board.paces()
    assert pace.rows_per_second == pytest.approx(60 / (5 * 2 + 4))
    assert (pace.chunks, pace.rows, pace.memory_bytes, pace.pid) == (8, 80, 7, 7)
    assert pace.shares == {"wait": 0.25, "forward": 0.75}
    assert (pace.state, pace.slow, pace.host) == ("working", False, "host-of-a")


def test_a_pace_follows_what_a_worker_does_now() -> None:
    """Fast for a day, slow for the last chunks: slow. Chunks for which models were loaded count if all were so."""
    clock = Clock()
    board = Board(PHASES, clock)
    deliver(board, clock, "a", 100, 1.0)
    deliver(board, clock, "a", RECENT, 10.0)
    deliver(board, clock, "new", 1, 50.0)
    rates = {pace.name: pace.rows_per_second for pace in board.paces()}
    assert rates == {"a": pytest.approx(1.0), "new": pytest.approx(0.2)}


def test_slow_workers_are_named_once_and_again_after_they_recovered() -> None:
    """Under half of the median, with enough chunks; the note says host, figures, and where the time goes."""
    clock = Clock()
    board = Board(PHASES, clock)
    for name in ("a", "b"):
        deliver(board, clock, name, LOADING + ENOUGH, 1.0)
    deliver(board, clock, "lame", LOADING + ENOUGH - 1, 2.5)
    assert board.remarks(5) == (), "not enough of its chunks"
    deliver(board, clock, "lame", 1, 2.5)
    (note,) = board.remarks(5)
    for words in ("worker lame on host-of-lame is slow: 4 rows/s", "median is 10", "75% of its time is forward"):
        assert words in note
    assert [pace.slow for pace in board.paces()] == [False, False, True]
    assert board.remarks(5) == (), "said once"
    deliver(board, clock, "lame", RECENT, 1.0)
    assert board.remarks(5) == () and not any(pace.slow for pace in board.paces())
    deliver(board, clock, "lame", RECENT, 3.0)
    assert len(board.remarks(5)) == 1


def test_nobody_is_slow_alone_or_by_less_than_half() -> None:
    clock = Clock()
    board = Board(PHASES, clock)
    deliver(board, clock, "a", LOADING + ENOUGH, 9.0)
    assert board.remarks(5) == ()
    deliver(board, clock, "b", LOADING + ENOUGH, 5.0)
    deliver(board, clock, "c", LOADING + ENOUGH, 5.0)
    assert board.remarks(5) == ()


def test_a_worker_that_delivers_nothing_is_named_while_there_is_work_for_all() -> None:
    """It may be there and silent from the beginning; at the end of a run idle workers are as they should be."""
    clock = Clock()
    board = Board(PHASES, clock)
    board.see({"stuck": Presence(host="10.0.0.9", memory_bytes=5, beat=1.0)})
    deliver(board, clock, "a", 20, STALLED_S / 10)
    board.see({name: Presence(host="10.0.0.9", memory_bytes=5, beat=2.0) for name in ("stuck", "a")})
    assert board.remarks(BUSY_CHUNKS * 2) == (), "few chunks are left"
    (note,) = board.remarks(1000)
    assert "worker stuck on 10.0.0.9 has delivered nothing for 240 s; a chunk usually takes 12 s" in note
    assert [(pace.name, pace.state, pace.seconds_since_sign) for pace in board.paces()] == [
        ("a", "working", 0.0),
        ("stuck", "preparing", 0.0),
    ]


def test_the_time_between_two_processes_of_one_name_is_nobodys() -> None:
    """A cancelled job's worker comes back under its name, minutes later: its pace is that of the new process."""
    clock = Clock()
    board = Board(PHASES, clock)
    for _ in range(LOADING + ENOUGH + 2):
        deliver(board, clock, "steady", 1, 1.0)
        board.take(mark("replaced"), 10, 1.0, {"forward": 1.0})
    clock.now += 300.0
    for _ in range(LOADING + ENOUGH):
        deliver(board, clock, "steady", 1, 1.0)
        board.take(mark("replaced", pid=8), 10, 1.0, {"forward": 1.0})
        assert not [text for text in board.remarks(100) if "worker replaced" in text]
    pace = {pace.name: pace for pace in board.paces()}["replaced"]
    assert pace.rows_per_second == pytest.approx(10.0) and not pace.slow
    assert pace.chunks == 2 * (LOADING + ENOUGH) + 2


def test_who_has_left_is_gone_and_not_compared() -> None:
    """One that left without a chunk is forgotten; one that comes back under its name works again."""
    clock = Clock()
    board = Board(PHASES, clock)
    here = Presence(host="h", memory_bytes=None, beat=1.0)
    for name in ("10", "2"):
        deliver(board, clock, name, LOADING + ENOUGH, 1.0)
    deliver(board, clock, "lame", LOADING + ENOUGH, 9.0)
    board.see({"10": here, "2": here, "lame": here, "idle": here})
    board.see({"10": here, "2": here})
    assert [(pace.name, pace.state) for pace in board.paces()] == [
        ("2", "working"),
        ("10", "working"),
        ("lame", "gone"),
    ]
    assert board.remarks(1000) == ()
    clock.now += 30
    board.see(None)
    assert [pace.seconds_since_sign for pace in board.paces()] == [30, 30, 30]
    board.see({"10": Presence(host="h", memory_bytes=9, beat=2.0), "2": here, "lame": here})
    assert [(p.name, p.state, p.seconds_since_sign, p.memory_bytes) for p in board.paces()] == [
        ("2", "working", 30, 100),
        ("10", "working", 0, 9),
        ("lame", "working", 30, 100),
    ]


def test_a_report_without_a_mark_is_passed_over() -> None:
    board = Board(PHASES)
    board.take(None, 5, 1.0, {})
    assert board.paces() == ()
