"""The request to stop: another terminal lays it beside a store, and the run that writes the store heeds it.

A request names the run by the token of its lock. So a request that comes too late stops no later run; the next owner
of the store clears it away.
"""

from __future__ import annotations

import getpass
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from teachonce.core.progress import Reporter
from teachonce.core.strict import decode_known
from teachonce.errors import IncompleteError, TeachOnceError
from teachonce.watching.beside import STOP, read_beside, remove_beside, write_beside

LOOK_EVERY_S = 1.0
GIVE_UP_S = 20.0  # the most that the end of a command waits for a look under way: a server may be away
AGAIN = "the same command goes on from here"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StopAsked:
    """Who asks which run to stop."""

    token: int
    """Of the lock of the run."""
    asked_by: str
    """User and host."""
    asked_at: float
    """Seconds since 1970."""


def ask_to_stop(store: Path, token: int) -> StopAsked:
    """Ask the run with this token, which owns the store, to stop.

    Raises:
        IncompleteError, EnvironmentFault: nothing can be written beside the store.
    """
    request = StopAsked(token=token, asked_by=f"{_user()} on {socket.gethostname()}", asked_at=time.time())
    write_beside(store, STOP, asdict(request))
    return request


def stop_request(store: Path, token: int) -> StopAsked | None:
    """The request that the run with this token should stop; None where nobody asked for that."""
    try:
        request = decode_known(StopAsked, read_beside(store, STOP) or {}, "stop", ValueError)
    except ValueError:
        return None
    return request if request.token == token else None


def withdraw_stop(store: Path) -> None:
    """Take back whatever request lies beside the store."""
    remove_beside(store, STOP)


class StopWatch:
    """What the owner of a store knows of requests to stop; `heeded` makes it."""

    def __init__(self, store: Path, token: int, reporter: Reporter) -> None:
        self._store, self._token, self._reporter = store, token, reporter
        self._came: StopAsked | None = None
        self._looking = threading.Lock()

    def asked(self) -> bool:
        """Whether the run should end; it costs nothing to ask."""
        return self._came is not None

    def look(self) -> bool:
        """Look whether a request has come; a thread does so all the time, and a worker may have seen one before it."""
        with self._looking:
            if self._came is None:
                self._came = stop_request(self._store, self._token)
                if self._came is not None:
                    who = self._came.asked_by
                    self._reporter.note(f"{who} asks this run to stop: what is under way ends, nothing new begins")
        return self.asked()

    def until_asked(self, work: Iterable[T]) -> Iterator[T]:
        """What is to be done, until the run should end."""
        for item in work:
            if self.asked():
                return
            yield item

    def heed(self, standing: str) -> None:
        """Go on only if nobody has asked to stop.

        Args:
            standing: where the work stands, in words.

        Raises:
            IncompleteError: somebody has.
        """
        if self._came is not None:
            raise IncompleteError(f"{self._store}: stopped, as {self._came.asked_by} asked; {standing}", hint=AGAIN)


@contextmanager
def heeded(store: Path, token: int, reporter: Reporter) -> Iterator[StopWatch]:
    """Look for requests to stop while the block runs; requests to earlier runs are cleared away.

    Args:
        store: which this run owns.
        token: of its lock.
        reporter: told when a request comes.
    """
    if stop_request(store, token) is None:
        withdraw_stop(store)
    watch, ended = StopWatch(store, token, reporter), threading.Event()

    def keep_looking() -> None:
        while not watch.asked():
            with suppress(TeachOnceError):  # the place does not answer; the work itself says so
                watch.look()
            if ended.wait(LOOK_EVERY_S):
                return

    thread = threading.Thread(target=keep_looking, daemon=True, name="stop-requests")
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join(GIVE_UP_S)
        if watch.asked():
            with suppress(TeachOnceError):
                withdraw_stop(store)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name; the former from Python 3.13 on
        return "somebody"
