"""The commands that look at, check or derive from a label store; the same rules as in `commands`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def inspect(
    labels: options.LabelsArgument,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show what a label store holds: rows, bytes, teacher, statistics, a few rows in words."""

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import inspect as stage

        return stage.inspect(stage.InspectRequest(labels=labels), output)

    return job("inspect", json, quiet, run_stage)


def verify(
    labels: options.LabelsArgument,
    repair: options.Repair = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Read every chunk of a label store back and compare it with its commit record.

    Exit code 4 and a list of what differs if anything does.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import verify as stage

        return stage.verify(stage.VerifyRequest(labels=labels, repair=repair), output)

    return job("verify", json, quiet, run_stage)
