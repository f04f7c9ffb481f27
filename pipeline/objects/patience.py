"""Waiting for a server that does not answer: object stores are away for minutes now and then, and come back.

A request that may succeed later is tried again with growing waits. Once a server has answered this process, or another
one of the same command, it has ten minutes; before that a few seconds, since then a wrong address is more likely than
an outage. An outage is said once, and its end once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from teachonce.errors import UsageError

T = TypeVar("T")
SETTING = "TEACHONCE_PATIENCE"  # environment variable: seconds for which a server that has answered may be away
DEFAULT_S = 600.0
UNKNOWN_S = 10.0  # ... and one that never has
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
Say = Callable[[str], None]

_guard = threading.Lock()
_reached: set[str] = set()  # servers that have answered
_away: dict[str, float] = {}  # when an outage that was said began
_listeners: list[Say] = []


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
def told(say: Say) -> Iterator[None]:
    """Inside, outages and their ends are said to `say`."""
    _listeners.append(say)
    try:
        yield
    finally:
        _listeners.remove(say)


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
            time.sleep(tries.wait_after(problem))
        else:
            _heard(server)
            return result


async def again_async(attempt: Callable[[], Awaitable[T]], server: str, may_pass: Callable[[Exception], bool]) -> T:
    """`again` for a request that is awaited."""
    tries = _Tries(server, may_pass)
    while True:
        try:
            result = await attempt()
        except Exception as problem:  # noqa: BLE001 - `wait_after` raises what is no outage
            await asyncio.sleep(tries.wait_after(problem))
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
    _say(f"{server} does not answer; it is asked again for {most:.0f} s ({SETTING})")


def _heard(server: str) -> None:
    with _guard:
        _reached.add(server)
        since = _away.pop(server, None)
    if since is not None:
        _say(f"{server} answers again after {time.monotonic() - since:.0f} s")


def _say(text: str) -> None:
    for say in list(_listeners):
        say(text)
