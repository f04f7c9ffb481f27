"""events.jsonl: what happened in a run, one JSON object a line, appended as it happens.

The log does not plot: it hands each event that it writes to its sinks as well, see `tensorboard`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teachonce.core.documents import events_in, read_events
from teachonce.runs.tensorboard import Sink

SCHEMA = 1


class RunLog:
    """An append-only log. Every line holds `schema`, `time` (seconds since 1970) and `event`."""

    def __init__(self, file: Path, sinks: Sequence[Sink] = ()) -> None:
        self._file = file
        self._sinks = sinks

    def write(self, event: str, **fields: Any) -> None:
        """Append one line."""
        whole = {"schema": SCHEMA, "time": round(time.time(), 3), "event": event, **fields}
        line = json.dumps(whole, allow_nan=False)
        with open(self._file, "ab+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # A crash tore the last line: without a line end it would swallow this one.
                    stream.write(b"\n")
            stream.write(line.encode() + b"\n")
        for sink in self._sinks:
            sink.write(whole)

    def read(self, event: str) -> list[dict[str, Any]]:
        """All whole lines of one kind; none where there is no log yet."""
        return [line for line in read_events(self._file) if line["event"] == event]

    def clear(self) -> None:
        """Start over."""
        self._file.unlink(missing_ok=True)
        self._begin([])

    def close(self) -> None:
        """Close the sinks; the log itself is open only while a line is written."""
        for sink in self._sinks:
            sink.close()

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, which a resumed run will write again; a torn last line goes too."""
        if not self._file.exists():
            return
        text = self._file.read_text(encoding="utf-8")
        kept = [line + "\n" for line, event in events_in(text) if event.get("step", 0) <= step]
        draft = self._file.with_suffix(".part")
        draft.write_text("".join(kept), encoding="utf-8")
        os.replace(draft, self._file)
        self._begin(read_events(self._file))

    def _begin(self, events: list[dict[str, Any]]) -> None:
        for sink in self._sinks:
            sink.start(events)
