"""Waiting for a server that does not answer: object stores are away for minutes now and then, and come back.

A request that may succeed later is tried again with growing waits. Once a server has answered this process, or another
one of the same command, it has ten minutes; before that a few seconds, since then a wrong address is more likely than
an outage. An outage is said once, and its end once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from teachonce.errors import UsageError

T = TypeVar("T")
SETTING = "TEACHONCE_PATIENCE"  # environment variable: seconds for which a server that has answered may be away
DEFAULT_S = 600.0
UNKNOWN_S = 10.0  # ... and one that never has
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outage:
    """That a server went away, or came back.

    Attributes:
        server: which.
        over: whether it answers again.
        text: one line for a person.
    """

    server: str
    over: bool
    text: str


_guard = threading.Lock()
_given_up = threading.Event()
_reached: set[str] = set()  # servers that have answered
_away: dict[str, float] = {}  # when an outage that was said began
_listeners: list[Callable[[Outage], None]] = []


def patience_s() -> float:
    """Seconds for which a server may be away.

    Raises:
        UsageError: the environment variable holds no number of seconds.
    """
    text = os.environ.get(SETTING, "")
    try:
        seconds = float(text) if text else DEFAULT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{SETTING} is '{text}'; a number of seconds from 0 was expected", hint=f"{SETTING}=600")
    return seconds


def expect(server: str) -> None:
    """Have full patience with a server from the start: another process of this command has had its answer."""
    with _guard:
        _reached.add(server)


@contextlib.contextmanager
def outages_noted(say: Say) -> Iterator[None]:
    """Inside, outages and their ends are said to `say`."""

    def hear(outage: Outage) -> None:
        say(outage.text)

    _listeners.append(hear)
    try:
        yield
    finally:
        _listeners.remove(hear)


def tell_all(hear: Callable[[Outage], None]) -> None:
    """From now on `hear` is called for every outage and its end, for as long as this process lives."""
    _listeners.append(hear)


def give_up() -> None:
    """Let every request that waits fail now, and wait for none from now on: this process is asked to end."""
    _given_up.set()


def wait_again() -> None:
    """Have patience again, for a process that goes on with something else."""
    _given_up.clear()


def again(attempt: Callable[[], T], server: str, may_pass: Callable[[Exception], bool]) -> T:
    """The result of `attempt`, which is called again after a while where its error may pass.

    Args:
        attempt: one request.
        server: what it goes to, for the note and for what is known of it.
        may_pass: whether an error is worth another try.

    Raises:
        Exception: that of the last attempt.
    """
    tries = _Tries(server, may_pass)
    while True:
        try:
            result = attempt()
        except Exception as problem:  # noqa: BLE001 - `wait_after` raises what is no outage
            if _given_up.wait(tries.wait_after(problem)):
                raise
        else:
            _heard(server)
            return result


async def again_async(attempt: Callable[[], Awaitable[T]], server: str, may_pass: Callable[[Exception], bool]) -> T:
    """`again` for a request that is awaited."""
    import asyncio  # its import takes longer than a command's help may

    tries = _Tries(server, may_pass)
    while True:
        try:
            result = await attempt()
        except Exception as problem:  # noqa: BLE001 - `wait_after` raises what is no outage
            await asyncio.sleep(tries.wait_after(problem))
            if _given_up.is_set():
                raise
        else:
            _heard(server)
            return result


class _Tries:
    """The tries of one request."""

    def __init__(self, server: str, may_pass: Callable[[Exception], bool]) -> None:
        self._server, self._may_pass = server, may_pass
        self._start, self._wait = time.monotonic(), FIRST_WAIT_S

    def wait_after(self, problem: Exception) -> float:
        """Seconds to wait before the next try.

        Raises:
            Exception: the problem, where there is to be none.
        """
        if not self._may_pass(problem):
            _heard(self._server)  # a refusal is an answer
            raise problem
        with _guard:
            most = patience_s() if self._server in _reached else min(UNKNOWN_S, patience_s())
        left = self._start + most - time.monotonic()
        if left <= 0:
            raise problem
        _missed(self._server, self._start, most)
        wait, self._wait = min(self._wait, left), min(2 * self._wait, LONGEST_WAIT_S)
        return wait


def _missed(server: str, start: float, most: float) -> None:
    with _guard:
        if server in _away:
            return
        _away[server] = start
    _say(Outage(server, False, f"{server} does not answer; it is asked again for {most:.0f} s ({SETTING})"))


def _heard(server: str) -> None:
    with _guard:
        _reached.add(server)
        since = _away.pop(server, None)
    if since is not None:
        _say(Outage(server, True, f"{server} answers again after {time.monotonic() - since:.0f} s"))


def _say(outage: Outage) -> None:
    for hear in list(_listeners):
        hear(outage)
