"""The command `stop`: a run that writes a label store ends after the chunks under way."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import stop as stage

Wait = Annotated[bool, typer.Option("--wait", help="Come back when the run has ended.")]


def stop(
    labels: options.LabelsArgument,
    wait: Wait = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Ask the run that writes a store to end after the chunks under way; its command typed again goes on.

    It works from any machine that sees the store, on teach, relabel and merge. Nothing that is computed is lost.
    """
    request = stage.StopRequest(labels=labels, wait=wait)
    return job("stop", json, quiet, lambda output: stage.stop(request, output), _shown)


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """What a person reads: the sentence."""
    return {"stop": values["said"]}
