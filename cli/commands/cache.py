"""The command `cache`: what runs have computed once and share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def cache(
    action: options.ActionArgument,
    labels: places.CacheLabels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """List or clear the working sets beside a label store, or the user's own cache; all of it is made again on demand.

    What a running process uses is left alone.
    """
    todo = options.cache_action(action)

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import cache as stage

        return stage.cache(stage.CacheRequest(action=todo, labels=labels), output)

    return job("cache", json, quiet, run_stage)
