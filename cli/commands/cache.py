"""The command `cache`: what runs have computed once and share."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError, did_you_mean
from teachonce.stages import cache as stage

CacheAction = typing.Literal["list", "clear"]
ActionArgument = Annotated[str, typer.Argument(metavar="list|clear", help="What to do.")]
CacheLabels = Annotated[
    Path | None,
    typer.Argument(
        help="Working sets beside this store; else the user's own cache.", show_default=False, **options.STORE
    ),
]


def cache(
    action: ActionArgument,
    labels: CacheLabels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """List or clear the working sets beside a label store, or the user's own cache; all of it is made again on demand.

    What a running process uses is left alone.
    """
    todo = _action(action)

    request = stage.CacheRequest(action=todo, labels=labels)
    return job("cache", json, quiet, lambda output: stage.cache(request, output))


def _action(word: str) -> CacheAction:
    """What `cache` should do.

    Raises:
        UsageError: it is no action; suggests the nearest.
    """
    known: tuple[CacheAction, ...] = typing.get_args(CacheAction)
    for action in known:
        if word == action:
            return action
    raise UsageError(f"no such action '{word}': {did_you_mean(word, known)}", "teachonce cache --help")
