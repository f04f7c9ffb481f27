"""The command `verify`: every chunk of a label store against the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def verify(
    labels: places.LabelsArgument,
    repair: options.Repair = False,
    teacher: options.VerifyTeacher = None,
    sample: options.VerifySample = None,
    root: places.Root = None,
    seed: options.VerifySeed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Read every chunk of a label store back and compare it with its commit record.

    With --teacher the model runs again on random rows and is compared with what is stored. Exit code 4 and a list of
    what differs if anything does.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import verify as stage

        request = stage.VerifyRequest(
            labels=labels, repair=repair, teacher=teacher, sample=sample, seed=seed, root=root
        )
        return stage.verify(request, output)

    return job("verify", json, quiet, run_stage)
