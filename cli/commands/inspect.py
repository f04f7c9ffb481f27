"""The command `inspect`: what a label store holds and what it loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def inspect(
    labels: places.LabelsArgument,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show what a label store holds: rows, bytes, teacher, statistics, a few rows in words."""

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import inspect as stage

        return stage.inspect(stage.InspectRequest(labels=labels), output)

    return job("inspect", json, quiet, run_stage)
