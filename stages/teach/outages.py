"""What workers say of servers that are away: once for all of them."""

from __future__ import annotations

import contextlib
import queue
from typing import Any

from distributed import Client

from teachonce.cluster.workers import messages
from teachonce.core.progress import Reporter
from teachonce.teaching.worker import OUTAGES


class Outages:
    """Notes of a run about servers that do not answer its workers.

    Args:
        client: of the cluster.
        reporter: receives a note when the first worker waits for a server, and one when none does any more.
    """

    def __init__(self, client: Client, reporter: Reporter) -> None:
        self._came, self._reporter = messages(client, OUTAGES), reporter
        self._waiting: dict[str, set[str]] = {}

    def pass_on(self) -> None:
        """Say what has come since."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._came.get_nowait())

    def _take(self, message: dict[str, Any]) -> None:
        worker, server, text = (str(message.get(key, "")) for key in ("who", "server", "text"))
        waiting = self._waiting.setdefault(server, set())
        before = bool(waiting)
        (waiting.discard if message.get("over") else waiting.add)(worker)
        if bool(waiting) != before:
            self._reporter.note(f"worker {worker}: {text}")
