"""The board of a run: what each worker has delivered, how fast, and when it gave its last sign of life.

The loop that takes reports tells it who computed what, and a look at the scheduler who is there. It reads and writes no
file; `watch` keeps it beside the store.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from teachonce.watching.workers import Presence, WorkerMark, WorkerPace

RECENT = 16  # chunks of a worker that its pace is made of: a worker that became slow after a day is slow
LOADING = 2  # the first chunks of a worker, one a thread, waited for its models
ENOUGH = 4  # chunks behind those, before a worker is compared with others
SLOW_SHARE = 0.5  # of the median
STALLED_S, STALLED_CHUNKS = 120.0, 10  # seconds, and usual times of a chunk, without a chunk, before a note says so
BUSY_CHUNKS = 4  # chunks left for each worker, with which every worker has something to do


@dataclass(frozen=True)
class _Chunk:
    """A chunk that was delivered."""

    ended: float
    seconds: float
    rows: int
    phases: Mapping[str, float]


@dataclass(eq=False)
class _Worker:
    """What is known of one worker."""

    name: str
    host: str
    since: float
    sign: float
    mark: WorkerMark | None = None
    memory: int | None = None
    beat: float | None = None
    gone: bool = False
    fresh: int = 0
    """Chunks of the process that has the name now."""
    chunks: int = 0
    rows: int = 0
    recent: deque[_Chunk] = field(default_factory=lambda: deque(maxlen=RECENT))

    def measured(self) -> list[_Chunk]:
        """The chunks that its pace is made of."""
        early = max(0, LOADING - (self.fresh - len(self.recent)))  # how many of `recent` waited for the models
        return list(self.recent)[early:] or list(self.recent)

    def rate(self) -> float | None:
        """Rows a second: its tasks overlap, so that time counts from the begin of the first to the end of the last."""
        chunks = self.measured()
        if not chunks:
            return None
        seconds = max(c.ended for c in chunks) - min(c.ended - c.seconds for c in chunks)
        return sum(c.rows for c in chunks) / seconds if seconds > 0 else None

    def shares(self, phases: Sequence[str]) -> dict[str, float]:
        """The shares of these phases in the time of its tasks."""
        spent = {phase: sum(c.phases.get(phase, 0.0) for c in self.measured()) for phase in phases}
        total = sum(spent.values())
        return {phase: seconds / total for phase, seconds in spent.items()} if total > 0 else {}


class Board:
    """Who delivered what. Every method may be called from any thread.

    Args:
        phases: of a task, which follow each other; shares are shares of these.
        clock: seconds that only grow; tests hand in their own.
    """

    def __init__(self, phases: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._phases, self._clock = tuple(phases), clock
        self._workers: dict[str, _Worker] = {}
        self._named: dict[str, str] = {}  # worker -> what was last said of it
        self._lock = threading.Lock()

    def take(self, mark: WorkerMark | None, rows: int, seconds: float, phases: Mapping[str, float]) -> None:
        """Note a chunk that came in.

        Args:
            mark: who computed it; None where the task did not say.
            rows: of it.
            seconds: from the start of the task to its end.
            phases: seconds by phase.
        """
        if mark is None:
            return
        with self._lock:
            now = self._clock()
            worker = self._workers.setdefault(mark.name, _Worker(mark.name, mark.host, now, now))
            if worker.mark is not None and (worker.mark.host, worker.mark.pid) != (mark.host, mark.pid):
                worker.recent.clear()  # another process has the name of one that ended: the time between is nobody's
                worker.fresh = 0
            worker.mark, worker.host, worker.memory, worker.sign = mark, mark.host, mark.memory_bytes, now
            worker.chunks, worker.rows, worker.fresh = worker.chunks + 1, worker.rows + rows, worker.fresh + 1
            worker.recent.append(_Chunk(now, seconds, rows, dict(phases)))

    def see(self, present: Mapping[str, Presence] | None) -> None:
        """Note who is there, by the workers' names; None where the scheduler did not answer."""
        if present is None:
            return
        with self._lock:
            now = self._clock()
            for name, presence in present.items():
                worker = self._workers.setdefault(name, _Worker(name, presence.host, now, now))
                worker.gone = False
                worker.memory = presence.memory_bytes or worker.memory
                if presence.beat != worker.beat:
                    worker.beat, worker.sign = presence.beat, now
            for worker in self._workers.values():
                # One whom no look has shown was there between two looks, or the scheduler has another name for it.
                worker.gone = worker.gone or (worker.beat is not None and worker.name not in present)

    def paces(self) -> tuple[WorkerPace, ...]:
        """What is known of every worker that is there or has delivered something, by name."""
        with self._lock:
            median, now = self._median(), self._clock()
            known = [worker for worker in self._workers.values() if worker.chunks or not worker.gone]
            return tuple(self._pace(worker, median, now) for worker in sorted(known, key=_order))

    def remarks(self, chunks_left: int) -> tuple[str, ...]:
        """What a person should know by now and has not been told: workers that are slow, or deliver nothing.

        Args:
            chunks_left: chunks of the run that are still missing.
        """
        with self._lock:
            news = dict(self._slow() if chunks_left else ())
            if chunks_left > BUSY_CHUNKS * len(self._workers):
                news |= {name: text for name, text in self._stalled() if name not in news}
            fresh = tuple(text for name, text in news.items() if name not in self._named)
            self._named = news  # one that recovers and falls behind again is named again
            return fresh

    def _median(self) -> float | None:
        """The median pace of those that can be compared; None where there are fewer than two."""
        rates = [rate for worker in self._workers.values() if (rate := self._comparable(worker)) is not None]
        return statistics.median(rates) if len(rates) > 1 else None

    @staticmethod
    def _comparable(worker: _Worker) -> float | None:
        return worker.rate() if worker.fresh >= LOADING + ENOUGH and not worker.gone else None

    def _is_slow(self, worker: _Worker, median: float | None) -> bool:
        rate = self._comparable(worker)
        return rate is not None and median is not None and rate < SLOW_SHARE * median

    def _pace(self, worker: _Worker, median: float | None, now: float) -> WorkerPace:
        return WorkerPace(
            name=worker.name,
            host=worker.host,
            pid=worker.mark.pid if worker.mark else None,
            device=worker.mark.device if worker.mark else None,
            state="gone" if worker.gone else "working" if worker.chunks else "preparing",
            chunks=worker.chunks,
            rows=worker.rows,
            rows_per_second=worker.rate(),
            shares=worker.shares(self._phases),
            memory_bytes=worker.memory,
            seconds_since_sign=round(now - worker.sign, 1),
            slow=self._is_slow(worker, median),
        )

    def _slow(self) -> Iterator[tuple[str, str]]:
        median = self._median()
        for worker in self._workers.values():
            if median is None or not self._is_slow(worker, median):
                continue
            shares = worker.shares(self._phases)
            most = max(shares, key=lambda phase: shares[phase], default="")
            where = f"; {shares[most]:.0%} of its time is {most}" if most else ""
            yield (
                worker.name,
                f"worker {worker.name} on {worker.host} is slow: {worker.rate() or 0.0:.4g} rows/s, and the median is "
                f"{median:.4g}{where}",
            )

    def _stalled(self) -> Iterator[tuple[str, str]]:
        usual = [chunk.seconds for worker in self._workers.values() for chunk in worker.measured()]
        if len(usual) < ENOUGH:
            return
        seconds = statistics.median(usual)
        for worker in self._workers.values():
            silent = self._clock() - (worker.recent[-1].ended if worker.recent else worker.since)
            if not worker.gone and silent > max(STALLED_S, STALLED_CHUNKS * seconds):
                yield (
                    worker.name,
                    f"worker {worker.name} on {worker.host} has delivered nothing for {silent:.0f} s; a chunk usually "
                    f"takes {seconds:.3g} s",
                )


def _order(worker: _Worker) -> tuple[bool, int, str]:
    """Those that are there first; names that are numbers by their size, as `2` before `10`."""
    return worker.gone, len(worker.name), worker.name
