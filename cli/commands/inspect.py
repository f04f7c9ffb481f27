"""The command `inspect`: what a label store holds and what it loses."""

from __future__ import annotations

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import inspect as stage


def inspect(
    labels: options.LabelsArgument,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show what a label store holds: rows, bytes, teacher, statistics, a few rows in words."""
    request = stage.InspectRequest(labels=labels)
    return job("inspect", json, quiet, lambda output: stage.inspect(request, output))
