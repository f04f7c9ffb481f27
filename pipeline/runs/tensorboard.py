"""Where a run's events go besides events.jsonl: to TensorBoard's files in the run folder, if that is asked for.

Nothing is sent to another machine, and no run is read back from these files: the files repeat what events.jsonl holds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from teachonce.errors import EnvironmentFault
from teachonce.phrases import option

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

LogTo = Literal["tensorboard"]

GROUPS = {"step": "train", "held_out": "held_out"}  # events that are plotted, and the heading of their curves
FILES = "events.out.tfevents.*"
NO_CURVES = frozenset({"schema", "time", "event", "step"})


class Sink(Protocol):
    """What takes a run's events, each as it stands in events.jsonl."""

    def start(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Begin with these events, and void those that an earlier attempt has left."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Take one more event."""

    def close(self) -> None:
        """End: no further event comes."""


def require_packages(kinds: Sequence[LogTo]) -> None:
    """Refuse a sink that cannot be opened, before anything starts.

    Raises:
        EnvironmentFault: its package is missing.
    """
    for kind in kinds:
        if importlib.util.find_spec(kind) is None:
            raise EnvironmentFault(
                option("log") + f" {kind}: the package {kind} is not installed", hint=f"pip install 'teachonce[{kind}]'"
            )


def open_sinks(kinds: Sequence[LogTo], run: Path) -> tuple[Sink, ...]:
    """The sinks that were asked for, each once; nothing is written before the first event."""
    return tuple(TensorBoardSink(run / kind) for kind in dict.fromkeys(kinds))


class TensorBoardSink:
    """Scalars for a TensorBoard that is opened on the run folder: losses, gradient norm, rate, held-out accuracy.

    Every attempt of a run writes a file of its own that says first that all earlier ones are void, and then repeats
    what still holds: a curve has each step once, also where a kill took the end of a file, or where an earlier attempt
    had no TensorBoard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def start(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Begin with the curves of these events."""
        for event in events:
            self._add(event)
        self._flush()

    def write(self, event: Mapping[str, Any]) -> None:
        """Add the figures of one event, and hand them to the system: a kill loses none."""
        self._add(event)
        self._flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, event: Mapping[str, Any]) -> None:
        group = GROUPS.get(str(event.get("event")))
        if group is None:
            return
        writer = self._opened()
        for name, value in event.items():
            if name not in NO_CURVES and isinstance(value, (int, float)):
                writer.add_scalar(f"{group}/{name}", value, event["step"], walltime=event["time"])

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _opened(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            old = set(self._folder.glob(FILES))
            self._writer = SummaryWriter(str(self._folder), purge_step=0)
            # Files are read in the order of their names, which begin with a time: the clock may have been set back.
            new = min(set(self._folder.glob(FILES)) - old)
            for file in old:
                if file > new:
                    file.unlink()
        return self._writer
