"""The command `subset`: which samples of a store a run uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import subset as stage

SubsetOut = Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Selection file to write.")]
Shots = Annotated[int | None, typer.Option("--shots", metavar="N", min=1, help="At most N samples of each class.")]
SubsetSeed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the few-shot choice.")]
SubsetTopK = Annotated[
    int | None, typer.Option("--top-k", metavar="K", min=1, help="Use the K best classes of each soft label only.")
]
SampleClasses = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="Samples of these classes only: one class id a line.")
]
AllNames = Annotated[
    bool, typer.Option("--all-names", help="With --classes: keep all the store's names in the softmax.")
]

Clean = Annotated[
    Path | None,
    typer.Option("--clean", metavar="AUDIT.csv", help="Leave out the samples that this list of audit says to."),
]


def subset(
    labels: options.LabelsArgument,
    out: SubsetOut,
    shots: Shots = None,
    seed: SubsetSeed = 0,
    top_k: SubsetTopK = None,
    classes: SampleClasses = None,
    all_names: AllNames = False,
    clean: Clean = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Write down which samples of a label store a run uses: few shots a class, some classes, fewer of the top k.

    The store stays as it is. Shots nest: with one seed, 1 shot is part of 2 shots.
    """
    request = stage.SubsetRequest(
        labels=labels,
        out=out,
        shots=shots,
        seed=seed,
        top_k=top_k,
        classes=classes,
        all_names=all_names,
        clean=clean,
    )
    return job("subset", json, quiet, lambda output: stage.subset(request, output))
