"""The commands `push` and `pull`: a label store to a bucket, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.objects.remote import location
from teachonce.stages import pull as pull_stage
from teachonce.stages import push as push_stage

PushLabels = Annotated[Path, typer.Argument(metavar="LABELS.zarr", parser=location, help="The store to send.")]
PushTarget = Annotated[
    Path,
    typer.Argument(metavar="TARGET", parser=location, help="Where it is to lie: s3://BUCKET/NAME.zarr, or a folder."),
]
PullSource = Annotated[
    Path,
    typer.Argument(metavar="SOURCE", parser=location, help="The store to fetch: s3://BUCKET/NAME.zarr, or a folder."),
]
PullLabels = Annotated[Path, typer.Argument(metavar="LABELS.zarr", parser=location, help="Where it is to lie.")]


def push(labels: PushLabels, target: PushTarget, json: options.Json = False, quiet: options.Quiet = False) -> Job:
    """Send a finished label store to a bucket or another disk: verified before, compared after, and resumable.

    Run again, it sends only what is not there. Another store at the target is refused.
    """
    request = push_stage.PushRequest(labels=labels, target=target)
    return job("push", json, quiet, lambda output: push_stage.push(request, output))


def pull(source: PullSource, labels: PullLabels, json: options.Json = False, quiet: options.Quiet = False) -> Job:
    """Fetch a label store from a bucket or another disk; it is verified, and appears whole or not at all.

    Run again after an interruption, it fetches only what is not there.
    """
    request = pull_stage.PullRequest(source=source, labels=labels)
    return job("pull", json, quiet, lambda output: pull_stage.pull(request, output))
