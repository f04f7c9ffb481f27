"""The command `verify`: every chunk of a label store against the ledger."""

from __future__ import annotations

from teachonce.cli import options, places
from teachonce.cli.jobs import Job, job
from teachonce.stages import verify as stage


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
    request = stage.VerifyRequest(labels=labels, repair=repair, teacher=teacher, sample=sample, seed=seed, root=root)
    return job("verify", json, quiet, lambda output: stage.verify(request, output))
