"""The commands that say what came out of runs; as in `commands`, each hands back the job that runs its stage."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from teachonce.cli import options, places, show_view
from teachonce.cli.console import PIPE_WIDTH, Output, on_terminal, plain
from teachonce.cli.jobs import Job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Runs = Annotated[
    Path, typer.Argument(metavar="DIR", help="A grid folder of ablate, a run folder of train, or a folder with some.")
]
ReportOut = Annotated[
    Path, typer.Option("--out", metavar="REPORT.html", help="The page; CSV and SVG go to REPORT-files beside it.")
]
ReportLabels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="LABELS.zarr", parser=places.location, show_default=False,
                 help="Label store to tell of, if not where the runs had it."),
]  # fmt: skip
ReportRoot = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", parser=places.location, show_default=False,
                 help="Folder of the store's images: shows some of them, before and after."),
]  # fmt: skip
ReportStudent = Annotated[
    str | None,
    typer.Option("--student", metavar="MODEL", show_default=False,
                 help="The student, if it has moved; only needed with --root."),
]  # fmt: skip
Shown = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run, grid or other folder with runs; or a results.json, or a store.")
]


def report(
    folder: Runs,
    out: ReportOut,
    labels: ReportLabels = None,
    root: ReportRoot = None,
    student: ReportStudent = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Write one HTML page of a folder of runs: what helped, by how much, against the spread; with every figure.

    Curves, settings with paired tests, classes that gain and lose, sample rows, the store's fidelity, cost, configs,
    origin. Runs that are damaged or not finished are listed and not counted. The page needs no network.
    """

    def work(output: Output) -> int:
        with output.working():
            from teachonce.stages import report as stage

            request = stage.ReportRequest(folder=folder, out=out, labels=labels, root=root, student=student)
            result: DataclassInstance = stage.report(request, output)
        _say(result, output, show_view.written)
        return 0

    return Job(command="report", json=json, quiet=quiet, work=work)


def show(
    path: Shown,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show the essence of runs in the terminal: settings, accuracy against the base, the loss as a line."""

    def work(output: Output) -> int:
        with output.working():
            from teachonce.stages import show as stage

            result: DataclassInstance = stage.show(stage.ShowRequest(path=path), output)
        _say(result, output, show_view.view)
        return 0

    return Job(command="show", json=json, quiet=quiet, work=work)


def _say(result: DataclassInstance, output: Output, view: Callable[[dict[str, Any]], RenderableType]) -> None:
    """A document, or what a person reads."""
    values: dict[str, Any] = plain(dataclasses.asdict(result))
    if output.json:
        output.document(values)
        return
    console = Console(file=sys.stdout, highlight=False, width=None if on_terminal(sys.stdout) else PIPE_WIDTH)
    with console.capture() as captured:
        console.print(view(values))
    output.text("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
