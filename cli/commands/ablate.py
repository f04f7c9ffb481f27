"""The command `ablate`: every cell of a grid from one label store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.cluster.description import ClusterSpec
from teachonce.objects.remote import location
from teachonce.stages import ablate as stage

GridFile = Annotated[
    Path,
    typer.Argument(
        metavar="GRID.toml", help="What to vary around which base (docs/ablate.md), or the name of a shipped grid."
    ),
]
GridLabels = Annotated[
    Path,
    typer.Option("--labels", metavar="LABELS.zarr", parser=location, help="A label store that teach has written."),
]
GridOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the grid, to write or to continue.")]
GridRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        parser=location,
        help="Folder of the data, for evaluations that name none and for prompts in the image tower.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the cells and estimate how long they take. Writes nothing.")
]
RetryCells = Annotated[bool, typer.Option("--retry-failed", help="Run the cells again that failed.")]
CellWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Cells at once on this machine (default 1), one a GPU.",
        rich_help_panel=options.WHERE,
    ),
]


def ablate(
    grid: GridFile,
    labels: GridLabels,
    student: options.Student,
    out: GridOut,
    root: GridRoot = None,
    dry_run: DryRun = False,
    retry_failed: RetryCells = False,
    workers: CellWorkers = None,
    scheduler: options.Scheduler = None,
    cluster: options.Cluster = None,
    force_unlock: options.ForceUnlock = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Run a grid of trainings from one label store, evaluate them, and choose by the measure the grid declares.

    The same command continues: finished cells are never run again, interrupted ones go on from their checkpoints. Exit
    code 5 while a cell has failed or is missing. No image reaches the teacher.
    """

    request = stage.AblateRequest(
        grid=grid,
        labels=labels,
        student=student,
        out=out,
        root=root,
        dry_run=dry_run,
        retry_failed=retry_failed,
        cluster=ClusterSpec(workers=workers, scheduler=scheduler, file=cluster),
        device=device,
        force_unlock=force_unlock,
    )
    return job("ablate", json, quiet, lambda output: stage.ablate(request, output))
