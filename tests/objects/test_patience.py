"""A server that goes away is waited for and said once; one that never answered, or refuses, is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_servers import Server, moto_server

from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.objects import patience
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.remote import exists, location, opened, read_range


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with one object, and a process that has never heard of it."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.2)
    with moto_server(tmp_path) as running:
        running.use(monkeypatch)
        running.make_bucket("photos")
        BucketObjects("s3", "photos").put("data/a.tar", b"0123456789")
        yield running


@pytest.fixture
def notes() -> Iterator[list[str]]:
    said: list[str] = []
    with patience.outages_noted(said.append):
        yield said


READS: dict[str, Callable[[], bytes]] = {
    "a range": lambda: read_range(location("s3://photos/data/a.tar"), 2, 3),
    "a whole object": lambda: location("s3://photos/data/a.tar").read_bytes(),
    "a stream": lambda: _streamed(),
    "whether it is there": lambda: b"%d" % exists(location("s3://photos/data")),
    "a listing": lambda: b"".join(path.name.encode() for path in location("s3://photos/data").iterdir()),
}


def _streamed() -> bytes:
    with opened(location("s3://photos/data/a.tar")) as file:
        file.seek(4)
        return file.read(2)


@pytest.mark.parametrize("what", READS)
def test_reads_outlast_a_server_that_was_killed(what: str, server: Server, notes: list[str]) -> None:
    """The answer is the same as before; the outage is one note, its end another."""
    before = READS[what]()
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    began = time.monotonic()
    assert READS[what]() == before
    back.join()
    assert 0.9 < time.monotonic() - began < 30
    assert len(notes) == 2 and "does not answer" in notes[0] and "answers again" in notes[1]
    assert server.url in notes[0] and patience.SETTING in notes[0]


def test_eight_threads_say_an_outage_once(server: Server, notes: list[str]) -> None:
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    threads = [threading.Thread(target=READS["a range"]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in [*threads, back]:
        thread.join()
    assert [("does not answer" in note) for note in notes].count(True) == 1


def test_patience_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that the environment says it is an error that says what to look at."""
    monkeypatch.setenv(patience.SETTING, "0.5")
    server.stop()
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match="s3://photos/data/a.tar cannot be reached") as caught:
        READS["a range"]()
    assert time.monotonic() - began < 10 and "AWS_ENDPOINT_URL" in caught.value.hint
    server.start()


def test_a_server_that_never_answered_is_soon_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """A mistyped address is more likely; unless another process of the command has had answers."""
    monkeypatch.setattr(patience, "UNKNOWN_S", 0.3)
    monkeypatch.setattr(patience, "_reached", set())
    server.stop()
    with pytest.raises(EnvironmentFault, match="cannot be reached"):
        READS["a range"]()
    monkeypatch.setattr(patience, "UNKNOWN_S", 0.0)
    back = threading.Timer(0.5, server.start)
    back.start()
    patience.expect(f"s3://photos at {server.url}")
    assert READS["a range"]() == b"234"
    back.join()


@pytest.mark.parametrize("text", ["soon", "-1", "inf"])
def test_a_setting_that_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.SETTING, text)
    with pytest.raises(UsageError, match=patience.SETTING):
        patience.patience_s()


def test_a_refusal_is_not_waited_for(server: Server, notes: list[str]) -> None:
    with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
        exists(location("s3://nowhere/a"))
    with pytest.raises(DataError, match="does not exist"):
        read_range(location("s3://photos/gone"), 0, 1)
    assert notes == []


def test_awaited_requests_are_as_patient() -> None:
    tries = iter([OSError("gone"), OSError("gone"), None])

    async def attempt() -> int:
        problem = next(tries)
        if problem is not None:
            raise problem
        return 3

    patience.expect("somewhere")
    assert asyncio.run(patience.again_async(attempt, "somewhere", lambda problem: True)) == 3


def test_who_is_asked_to_end_does_not_wait_any_longer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of minutes in another thread ends at once, with the error that it waited about."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 60.0)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 60.0)
    server.stop()
    problems: list[Exception] = []

    def read() -> None:
        try:
            READS["a range"]()
        except EnvironmentFault as problem:
            problems.append(problem)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(1.0)
    patience.give_up()
    thread.join(timeout=30)
    patience.wait_again()
    assert not thread.is_alive() and "cannot be reached" in str(problems[0])
    server.start()
