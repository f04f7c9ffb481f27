"""The command `report`: one page that says what runs found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import show as show_view
from teachonce.cli.views.printed import print_result
from teachonce.cli.words import spelled
from teachonce.stages import report as stage

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
    typer.Option(
        "--labels",
        metavar="LABELS.zarr",
        parser=options.location,
        show_default=False,
        help="Label store to tell of, if not where the runs had it.",
    ),
]
ReportRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        parser=options.location,
        show_default=False,
        help="Folder of the store's images: shows some of them, before and after.",
    ),
]
ReportStudent = Annotated[
    str | None,
    typer.Option(
        "--student", metavar="MODEL", show_default=False, help="The student, if it has moved; only needed with --root."
    ),
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
            request = stage.ReportRequest(folder=folder, out=out, labels=labels, root=root, student=student)
            result: DataclassInstance = stage.report(request, output, spelled)
        print_result(result, output, show_view.written)
        return 0

    return Job(command="report", json=json, quiet=quiet, work=work)
