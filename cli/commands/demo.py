"""The command `demo`: all stages on the made-up world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import demo as stage

DEMO_FOLDER = Path("teachonce-demo")

Workers = Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Dask worker processes.")]
DemoOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything that the demo writes.")]
DemoSeeds = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Runs of each configuration.")]
DemoTrainModels = Annotated[
    Path | None,
    typer.Option("--train-models", metavar="DIR", hidden=True, help="Maintainers: train the demo's models into DIR."),
]


def demo(
    out: DemoOut = DEMO_FOLDER,
    seeds: DemoSeeds = 1,
    workers: Workers = 1,
    train_models: DemoTrainModels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show all of it in minutes: offline, on a CPU, with images and models that ship with the package."""
    request = stage.DemoRequest(out=out, seeds=seeds, workers=workers, train_models=train_models)
    return job("demo", json, quiet, lambda output: stage.demo(request, output))
