"""The command `demo`: all stages on the made-up world."""

from __future__ import annotations

from pathlib import Path

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import demo as stage

DEMO_FOLDER = Path("teachonce-demo")


def demo(
    out: options.DemoOut = DEMO_FOLDER,
    seeds: options.DemoSeeds = 1,
    workers: options.Workers = 1,
    train_models: options.DemoTrainModels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show all of it in minutes: offline, on a CPU, with images and models that ship with the package."""
    request = stage.DemoRequest(out=out, seeds=seeds, workers=workers, train_models=train_models)
    return job("demo", json, quiet, lambda output: stage.demo(request, output))
