"""What a person or a pipe sees: one sink for notes, progress, results and errors.

Results go to stdout, everything else to stderr. It knows no command and decides no exit code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_module
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from teachonce.cli.views import fidelity as charts
from teachonce.cli.words import displayed, spelled
from teachonce.core.documents import plain, sealed, visible
from teachonce.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.progress import Progress, TaskID

SCHEMA = 1
"""Raised when a key of a JSON document changes its meaning or disappears; new keys do not raise it."""

KEPT = ("evaluate",)
"""Commands whose documents are laid down beside runs, where others read them: these carry their digest."""

HEARTBEAT_SECONDS = 30.0
"""Seconds between two progress lines in a job log: a reader sees that the job lives, and the file stays short."""

HEARTBEAT_VARIABLE = "TEACHONCE_HEARTBEAT"
SHARES = ("top1", "top5", "template_top1", "macro", "gain", "share")  # these figures are shown in percent
READABLE = 12  # a column of a table is not made narrower than its longest word, or than this
PIPE_WIDTH = 160  # a pipe has no width; at Rich's 80 columns a table of results would be folded


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed command, as it is shown and as it stands in the JSON document."""

    kind: str
    message: str
    hint: str
    exit_code: int


class Screen(Console):
    """Where text is shown. What comes out of files is only ever shown: its markup, and escapes in it, do nothing.

    Every console of the command line is one. A string is shown as it stands; colours come from our own `Text`s.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Rich's segments, with visible escapes in every one that is text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Aside(Screen):
    """What is said on stderr. Nobody has to listen: when the reader of a pipe leaves, the work goes on."""

    def on_broken_pipe(self) -> None:
        """Send what follows to the null device; Rich would end the program."""
        to_nowhere(sys.stderr)


class Pace:
    """How fast one piece of work goes, counted from the first report: resumed work must not flatter the rate."""

    def __init__(self, now: float, done: int) -> None:
        self._since = now
        self._first = done
        self.latest = done
        self.shown: float | None = None
        self.finished = False

    def rate(self, now: float) -> float:
        """Units a second; 0 while no time has passed since the first report."""
        seconds = now - self._since
        return (self.latest - self._first) / seconds if seconds > 0 else 0.0


class Output:
    """The `teachonce.core.progress.Reporter` of the command line, and the printer of its results and errors.

    Args:
        command: its name, for the JSON document; None while it is not known.
        json: results are one JSON document.
        quiet: notes and progress are dropped.
        clock: seconds that only grow; tests hand in their own.
    """

    def __init__(
        self,
        command: str | None,
        *,
        json: bool = False,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._json = json
        self._quiet = quiet
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        """One line for the person, above a running bar."""
        if not self._quiet:
            self._say(Text(displayed(text)))

    def progress(self, what: str, done: int, total: int, unit: str, **figures: float | int | str) -> None:
        """Move the bar called `what`; without a terminal, now and then print a line instead."""
        if self._quiet:
            return
        now = self._clock()
        pace = self._paces.get(what)
        if pace is None or done < pace.latest:  # the same work started over, an epoch for instance
            pace = self._paces[what] = Pace(now, done)
        pace.latest = done
        text = pace_text(done, total, unit, pace.rate(now), figures)
        if on_terminal(sys.stderr):
            self._move_bar(what, done, total, text)
        elif self._is_due(pace, now, done >= total > 0):
            self._say(Text(visible(f"{what}: {text}")))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Surround a stage, so that nothing but the result reaches stdout and no bar outlives the stage."""
        with stdout_on_stderr():
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """Stop the bars where they stand, so that what follows is not drawn over."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def result(
        self, result: DataclassInstance, shown: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> None:
        """Print what a stage returned: a JSON document, or tables for a person, whose values `shown` rearranges."""
        if self._json:
            self.document(dataclasses.asdict(result))
            return
        values = plain(dataclasses.asdict(result), displayed)
        values = shown(values) if shown else values
        width = None if on_terminal(sys.stdout) or "COLUMNS" in os.environ else PIPE_WIDTH
        console = Screen(file=sys.stdout, width=width)
        with console.capture() as captured:
            report = values.pop("fidelity", None)
            values.pop("details", None)  # `details` is for programs: a person would not read so many tables
            for part in [*render(values), *(charts.fidelity(report) if report else [])]:
                console.print(part)
        self.text(captured.get())

    def document(self, values: Mapping[str, Any]) -> None:
        """Print the one JSON document of this command, on one line so that files of many stay easy to read."""
        document = {"schema": SCHEMA, "command": self._command, **plain(values, spelled)}
        if self._command in KEPT:
            document = sealed(document)
        self.text(json_module.dumps(document, allow_nan=False) + "\n")

    def text(self, text: str) -> None:
        """Write to stdout; a reader that left early (`| head`) is no error: the work is done.

        Raises:
            EnvironmentFault: it cannot be written, as on a full disk.
        """
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            to_nowhere(sys.stdout)
        except OSError as problem:
            to_nowhere(sys.stdout)
            raise EnvironmentFault(
                f"standard output cannot be written: {problem.strerror}",
                hint="the work is done; send the output elsewhere, and run this again to see it",
            ) from problem

    @property
    def json(self) -> bool:
        """Whether results are JSON."""
        return self._json

    def failure(self, failure: Failure) -> None:
        """Show an error on stderr and, with `--json`, as the document on stdout."""
        self.close()
        self._say(Text.assemble(("error: ", "bold red"), visible(failure.message)))
        if failure.hint:
            self._say(Text.assemble(("next: ", "bold cyan"), visible(failure.hint)))
        if self._json:
            with contextlib.suppress(EnvironmentFault):  # stdout may be what failed, and stderr has the error already
                self.document({"error": dataclasses.asdict(failure)})

    def _say(self, text: Text) -> None:
        console = self._bars.console if self._bars is not None else Aside(stderr=True)
        console.print(text, soft_wrap=True)  # unwrapped, so that a path can be copied whole

    def _is_due(self, pace: Pace, now: float, at_end: bool) -> bool:
        """Whether to print a progress line: at the first report, at the end once, and once a heartbeat in between."""
        if pace.finished:
            return False
        if pace.shown is not None and not at_end and now - pace.shown < heartbeat_seconds():
            return False
        pace.shown = now
        pace.finished = at_end
        return True

    def _move_bar(self, what: str, done: int, total: int, text: str) -> None:
        if self._bars is None:
            self._bars = new_bars()
            self._bars.start()
        size = total if total > 0 else None
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=size, pace=text)
        self._bars.update(self._tasks[what], completed=done, total=size, pace=text)


def new_bars() -> Progress:
    """Bars on stderr whose text is ours, so that a terminal and a log show the same figures."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    pace = TextColumn("{task.fields[pace]}", markup=False)
    return Progress(*columns, pace, console=Aside(stderr=True))


def to_nowhere(stream: Any) -> None:
    """Point the stream at the null device, so that the interpreter can flush it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def on_terminal(stream: Any) -> bool:
    """Whether a person watches this stream on a terminal that can move its cursor."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def heartbeat_seconds() -> float:
    """Seconds between two progress lines in a log.

    Raises:
        UsageError: the environment variable is no number.
    """
    text = os.environ.get(HEARTBEAT_VARIABLE, str(HEARTBEAT_SECONDS))
    try:
        return float(text)
    except ValueError as problem:
        raise UsageError(f"{HEARTBEAT_VARIABLE}: expected seconds, found {text!r}") from problem


@contextlib.contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send what a library or a child process prints inside to stderr: stdout holds one result."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)  # children inherit the descriptor, not Python's sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def pace_text(done: int, total: int, unit: str, rate: float, figures: Mapping[str, float | int | str]) -> str:
    """`64/128 rows, 3.2 rows/s, 20s left, failed 1`: what is unknown is left out."""
    parts = [f"{done:,}/{total:,} {unit}" if total > 0 else f"{done:,} {unit}"]
    if rate > 0:
        parts.append(f"{number(rate)} {unit}/s")
        if total > done:
            parts.append(f"{duration((total - done) / rate)} left")
    parts.extend(f"{label(name)} {show(name, value)}" for name, value in figures.items())
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`45s`, `3m 20s`, `2h 05m`, `4d 03h`: two units say enough."""
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{name} {whole % size // small:02d}{small_name}"
    return f"{whole}s"


def render(values: Mapping[str, Any]) -> list[RenderableType]:
    """Tables for a person: first every single figure, then each list of records."""
    figures = Table(box=None, show_header=False, pad_edge=False)
    figures.add_column(overflow="fold")
    figures.add_column(overflow="fold")
    parts: list[RenderableType] = [figures]
    for key, value in flat(values):
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            parts.append(Records(key, value))
        else:
            figures.add_row(Text(label(key), style="cyan"), Text(show(key, value)))
    return parts


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Records:
    """Records as a table with one line each; where it is too narrow for that, one below the other.

    The columns are all keys, in order of appearance, but for lists that are empty in every record.
    """

    def __init__(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        flat_rows = [dict(flat(row)) for row in rows]
        keys = list(dict.fromkeys(key for row in flat_rows for key in row if row[key] != []))
        self._title = label(title)
        self._heads = [label(key) for key in keys]
        self._lines = [[show(key, row.get(key)) for key in keys] for row in flat_rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What Rich prints in the width at hand."""
        widest = [max(len(word) for text in column for word in ("", *text.split())) for column in self._columns()]
        if 1 + sum(3 + min(width, READABLE) for width in widest) <= options.max_width:
            table = Table(title=self._title, title_justify="left")
            for head in self._heads:
                table.add_column(Text(head), overflow="fold")
            for line in self._lines:
                table.add_row(*map(Text, line))
            yield table
            return
        yield Text(self._title, style="italic")
        for line in self._lines:
            yield Text("-" * min(options.max_width, READABLE))
            for head, value in zip(self._heads, line, strict=True):
                yield Text(f"{head}: {value}", overflow="fold")

    def _columns(self) -> Iterator[tuple[str, ...]]:
        return zip(self._heads, *self._lines, strict=True)


def label(key: str) -> str:
    """A key as a person writes it."""
    return visible(key.replace("_", " "))


def show(key: str, value: Any) -> str:
    """A value as a person reads it: accuracies in percent, counts with separators."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{label(name)} {show(name, item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(key, item) for item in value) or "none"
    if isinstance(value, float) and key.rpartition(".")[2].startswith(SHARES):
        return f"{100 * value:.2f}%"
    return number(value) if isinstance(value, (int, float)) else str(value)


def number(value: float | int) -> str:
    """Four significant digits, or all digits before the point."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
