"""The command `export`: a folder of prompts, class weights and a model card for other people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import export as stage

ExportRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run of train, a result of import, or an export.")]
ExportOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; new or empty.")]
ExportClasses = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Class list of the weight matrix: a TSV file (id, name) or timm:NAME. Without it no weights are written.",
    ),
]
ExportStudent = Annotated[
    str | None,
    typer.Option("--student", metavar="MODEL", help="Where the student is, if not where it was in training."),
]
Licence = Annotated[
    str | None, typer.Option("--licence", metavar="TEXT", help="Of the prompts, such as cc-by-4.0, for the card.")
]
Push = Annotated[
    str | None,
    typer.Option(
        "--push",
        metavar="OWNER/NAME",
        help="Upload the folder to this repository of the Hugging Face hub, "
        "which is made, private, where it is not there.",
    ),
]


def export(
    run: ExportRun,
    out: ExportOut,
    classes: ExportClasses = None,
    student: ExportStudent = None,
    licence: Licence = None,
    push: Push = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make a folder that others can use: prompts, class weights for a list of names, model card, digests.

    It is loaded again and compared before it gets its name. No network is used, except for --push.
    """
    request = stage.ExportRequest(
        run=run, out=out, classes=classes, student=student, licence=licence, push=push, device=device
    )
    return job("export", json, quiet, lambda output: stage.export(request, output))
