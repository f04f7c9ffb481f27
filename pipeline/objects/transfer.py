"""Sending objects from one place to another: in parallel, compared after they were written, and only what is not there.

A run that is killed leaves whole objects; the next one compares them with the source and sends the rest.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from teachonce.core.progress import Reporter
from teachonce.errors import IncompleteError, IntegrityError
from teachonce.objects.seam import Entry, Objects

CONNECTIONS = 16  # objects under way at a time
MOST_UNDER_WAY = 2 * CONNECTIONS


@dataclass(frozen=True)
class Sent:
    """What was done with one object, or with many."""

    objects: int = 0
    bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(
            self.objects + other.objects,
            self.bytes + other.bytes,
            self.sent + other.sent,
            self.sent_bytes + other.sent_bytes,
        )


def send(
    source: Objects,
    target: Objects,
    entries: Iterable[Entry],
    there: Mapping[str, Entry],
    total: int,
    before: Sent,
    reporter: Reporter,
) -> Sent:
    """Send objects; returns when all are written and compared.

    Args:
        source: where they are read.
        target: where they are written, under the same keys.
        entries: of the source.
        there: what the target has already, by key.
        total: objects of the whole work, for the bar.
        before: what earlier calls of the same work have done.
        reporter: is told how far it is.

    Returns:
        What was done, with `before` in it.

    Raises:
        IncompleteError: an object of the source is gone.
        IntegrityError: an object reads back different from what was written.
        EnvironmentFault: what the source or the target refuses.
    """
    done, todo, stop = before, iter(entries), threading.Event()

    def one(entry: Entry) -> Sent:
        return Sent() if stop.is_set() else _send_one(source, target, entry, there.get(entry.key))

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="send") as pool:
        running: set[Future[Sent]] = set()
        try:
            while True:
                for entry in todo:
                    running.add(pool.submit(one, entry))
                    if len(running) >= MOST_UNDER_WAY:
                        break
                if not running:
                    return done
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    done += future.result()
                reporter.progress("send", done.objects, total, "objects", sent=done.sent)
        except BaseException:
            stop.set()  # what has not begun does not begin
            raise


def _send_one(source: Objects, target: Objects, entry: Entry, there: Entry | None) -> Sent:
    if there is not None and there.size == entry.size and _is_same(source, target, entry, there):
        return Sent(1, entry.size)
    stored = source.get(entry.key)
    if stored is None:
        raise IncompleteError(
            f"{source.place}/{entry.key} is gone: somebody changes the store while it is copied",
            hint="run the same command again when nothing writes it",
        )
    version = target.put(entry.key, stored.data)
    if version.md5 != md5_of(stored.data):
        back = target.get(entry.key)
        if back is None or back.data != stored.data:
            raise IntegrityError(
                f"{target.place}/{entry.key} reads back different from what was written",
                hint="the disk or the server is faulty, or somebody else writes there",
            )
    return Sent(1, len(stored.data), 1, len(stored.data))


def _is_same(source: Objects, target: Objects, entry: Entry, there: Entry) -> bool:
    """Whether two objects of one size hold the same; they are read only where their listings do not say it."""
    if entry.md5 and entry.md5 == there.md5:
        return True
    here = source.get(entry.key)
    if here is None:
        return False
    if there.md5 and there.md5 == md5_of(here.data):
        return True
    # A checksum that differs may be none of the content: servers that encrypt or join parts have others.
    other = target.get(there.key)
    return other is not None and other.data == here.data


def md5_of(data: bytes) -> str:
    """MD5 in hex: what servers of S3 give as the ETag of an object that came in one request."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
