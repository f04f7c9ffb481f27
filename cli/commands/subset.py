"""The command `subset`: which samples of a store a run uses."""

from __future__ import annotations

from teachonce.cli import options, places
from teachonce.cli.jobs import Job, job
from teachonce.stages import subset as stage


def subset(
    labels: places.LabelsArgument,
    out: options.SubsetOut,
    shots: options.Shots = None,
    seed: options.SubsetSeed = 0,
    top_k: options.SubsetTopK = None,
    classes: options.SampleClasses = None,
    all_names: options.AllNames = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Write down which samples of a label store a run uses: few shots a class, some classes, fewer of the top k.

    The store stays as it is. Shots nest: with one seed, 1 shot is part of 2 shots.
    """
    request = stage.SubsetRequest(
        labels=labels, out=out, shots=shots, seed=seed, top_k=top_k, classes=classes, all_names=all_names
    )
    return job("subset", json, quiet, lambda output: stage.subset(request, output))
