"""The command `merge`: the mean of several teachers."""

from __future__ import annotations

from teachonce.cli import options, places, settings
from teachonce.cli.jobs import Job, job
from teachonce.stages import merge as stage


def merge(
    stores: places.MergeArgument,
    out: places.LabelsOption,
    weights: options.Weights = None,
    top_k: options.TopK = None,
    force_unlock: options.ForceUnlock = False,
    set_: options.MergeSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Merge several teachers of the same images: the mean of their calibrated probabilities.

    Every store needs embeddings. The same command continues a store that is not complete.
    """
    shares = options.listed_numbers(weights, "--weights")
    how = settings.settings(settings.MergeSettings, set_ or ())

    request = stage.MergeRequest(
        parents=tuple(stores),
        labels=out,
        weights=shares,
        top_k=top_k,
        calibrate=how.calibrate,
        threads=how.threads,
        force_unlock=force_unlock,
    )
    return job("merge", json, quiet, lambda output: stage.merge(request, output))
