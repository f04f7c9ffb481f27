"""The board of a run, kept in a small document beside the store while the run goes on, and read by `status`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from teachonce.core.progress import Reporter
from teachonce.core.strict import decode_known
from teachonce.errors import TeachOnceError
from teachonce.watching.beside import WORKERS, read_beside, remove_beside, write_beside
from teachonce.watching.board import Board
from teachonce.watching.workers import Presence, WorkerPace

KEEP_EVERY_S = 10.0
MOST_GONE = 50  # workers that have left: a run of days on machines that come and go has hundreds
Look = Callable[[], Mapping[str, Presence] | None]


@dataclass(frozen=True, kw_only=True)
class KeptBoard:
    """The document."""

    token: int
    """Of the lock of the run."""
    written: float
    """Seconds since 1970."""
    ended: bool
    """The run came to its end, by itself or with an error."""
    workers: tuple[WorkerPace, ...]


@contextmanager
def watched(
    store: Path, token: int, board: Board, look: Look, chunks_left: Callable[[], int], reporter: Reporter
) -> Iterator[None]:
    """Keep the board beside the store while the block runs; behind, it stays there with the time of its end.

    A board that cannot be written ends no run: the first time is noted.

    Args:
        store: which this run owns.
        token: of its lock.
        board: told who delivers what, by whoever takes the reports.
        look: who is there, as the scheduler says.
        chunks_left: how many chunks of the run are missing now.
        reporter: told which workers are slow.
    """
    ended, trouble = threading.Event(), threading.Event()

    def keep(final: bool) -> None:
        try:
            _write(store, token, board, final)
        except TeachOnceError as problem:
            if not trouble.is_set():
                trouble.set()
                reporter.note(f"what `teachonce status` says of workers is out of date: {problem}")

    def go_on() -> None:
        while True:
            board.see(look())
            for remark in board.remarks(chunks_left()):
                reporter.note(remark)
            keep(final=False)
            if ended.wait(KEEP_EVERY_S):
                return

    thread = threading.Thread(target=go_on, daemon=True, name="board")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        keep(final=True)


def _write(store: Path, token: int, board: Board, final: bool) -> None:
    paces = board.paces()
    gone = [pace for pace in paces if pace.state == "gone"]
    last = sorted(gone, key=lambda pace: pace.seconds_since_sign)[:MOST_GONE]
    kept = tuple(pace for pace in paces if pace.state != "gone" or pace in last)
    write_beside(store, WORKERS, asdict(KeptBoard(token=token, written=time.time(), ended=final, workers=kept)))


def forget_workers(store: Path) -> None:
    """Remove what is kept of workers: a store that is finished has none."""
    remove_beside(store, WORKERS)


def workers_of(store: Path, token: int | None, now: float) -> tuple[WorkerPace, ...]:
    """The workers of the run that writes a store, or of the last one that did not finish it; empty if none is known.

    Args:
        store: at which somebody looks from outside.
        token: of the lock; None where nobody holds it.
        now: seconds since 1970.
    """
    try:
        board = decode_known(KeptBoard, read_beside(store, WORKERS) or {}, "workers", ValueError)
    except ValueError:
        return ()
    if token is not None and board.token != token:  # of an earlier run
        return ()
    age = max(0.0, now - board.written)
    over = board.ended or token is None
    return tuple(
        replace(
            pace,
            state="gone" if over else pace.state,
            seconds_since_sign=round(pace.seconds_since_sign + age, 1),
        )
        for pace in board.workers
    )
