"""The command `subset`: which samples of a store a run uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import subset as stage

        request = stage.SubsetRequest(
            labels=labels, out=out, shots=shots, seed=seed, top_k=top_k, classes=classes, all_names=all_names
        )
        return stage.subset(request, output)

    return job("subset", json, quiet, run_stage)
