"""The command `verify`: every chunk of a label store against the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import verify as stage

Repair = Annotated[
    bool, typer.Option("--repair", help="Take bad chunks out of the ledger, so that the next teach rebuilds them.")
]
VerifyTeacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help="Run this teacher again on random rows and compare; needs --root."),
]
VerifySample = Annotated[
    int | None, typer.Option("--sample", metavar="N", min=1, help="With --teacher: how many rows (default 256).")
]
VerifySeed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="With --teacher: which rows.")]


def verify(
    labels: options.LabelsArgument,
    repair: Repair = False,
    teacher: VerifyTeacher = None,
    sample: VerifySample = None,
    root: options.Root = None,
    seed: VerifySeed = 0,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Read every chunk of a label store back and compare it with its commit record.

    With --teacher the model runs again on random rows and is compared with what is stored. Exit code 4 and a list of
    what differs if anything does.
    """
    request = stage.VerifyRequest(
        labels=labels, repair=repair, teacher=teacher, sample=sample, seed=seed, root=root, device=device
    )
    return job("verify", json, quiet, lambda output: stage.verify(request, output))
