"""The command `status`: how far a store, a run or a grid is."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teachonce.cli import options
from teachonce.cli.console import Output, Screen, on_terminal
from teachonce.cli.jobs import Job
from teachonce.cli.views import status as status_view
from teachonce.cli.views.printed import print_view
from teachonce.core.documents import plain
from teachonce.core.status import State
from teachonce.objects.remote import location
from teachonce.stages import status as stage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OVER: tuple[State, ...] = ("finished", "stopped", "damaged")  # states that do not change by themselves
SHORTEST_S = 0.2  # between two looks
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", parser=location, help="A label store, a run folder of train or a grid folder of ablate."
    ),
]
Watch = Annotated[
    float | None,
    typer.Option(
        "--watch",
        metavar="SECONDS",
        min=SHORTEST_S,
        show_default=False,
        help="Look again every so often until the work is over; with --json, a document a line.",
    ),
]


def status(
    folder: Folder,
    watch: Watch = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Say where a teach, a training run or a grid stands: done, pace, failures, who works, when it may end.

    Reads only, takes no lock, and works on what is running, killed, finished or just begun.
    """

    def work(output: Output) -> int:
        look = _looker(folder, output)
        with _screen(output, live=watch is not None) as show:
            standing = look()
            show(standing)
            while watch is not None and standing["state"] not in OVER:
                time.sleep(watch)
                standing = look()
                show(standing)
        return 0

    return Job(command="status", json=json, quiet=quiet, work=work)


def _looker(folder: Path, output: Output) -> Callable[[], dict[str, Any]]:
    def look() -> dict[str, Any]:
        with output.working():
            result: DataclassInstance = stage.status(stage.StatusRequest(folder=folder), output)
        values: dict[str, Any] = plain(dataclasses.asdict(result))
        return values

    return look


@contextmanager
def _screen(output: Output, live: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """The function that shows each answer: as a document, as a picture that changes on a terminal, or as a block."""
    if output.json:
        yield output.document
    elif live and on_terminal(sys.stdout):
        from rich.live import Live

        with Live(console=Screen(), auto_refresh=False) as picture:
            yield lambda values: picture.update(status_view.view(values), refresh=True)
    else:
        yield lambda values: print_view(status_view.view(values), output)
