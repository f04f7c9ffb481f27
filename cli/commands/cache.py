"""The command `cache`: what runs have computed once and share."""

from __future__ import annotations

from teachonce.cli import options, places
from teachonce.cli.jobs import Job, job
from teachonce.stages import cache as stage


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

    request = stage.CacheRequest(action=todo, labels=labels)
    return job("cache", json, quiet, lambda output: stage.cache(request, output))
