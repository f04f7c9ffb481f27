"""The command `merge`: the mean of several teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from teachonce.cli import options, settings
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError, did_you_mean
from teachonce.softening.rules import RowRule
from teachonce.stages import merge as stage

RULES: tuple[RowRule, ...] = get_args(RowRule)
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="W,W,...",
        help="How much each store counts: numbers, or how sure each is of a row: confidence, entropy, margin; equal.",
    ),
]
MergeSet = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=options.set_help(settings.MergeSettings))
]
MergeArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="A.zarr B.zarr...", parser=options.location, help="Stores of the same images, each with embeddings."
    ),
]


def merge(
    stores: MergeArgument,
    out: options.LabelsOption,
    weights: Weights = None,
    top_k: options.TopK = None,
    force_unlock: options.ForceUnlock = False,
    set_: MergeSet = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Merge several teachers of the same images: the mean of their calibrated probabilities.

    Every store needs embeddings. The same command continues a store that is not complete.
    """
    rule = _rule(weights)
    shares = options.listed_numbers(weights, "--weights") if rule is None else None
    how = settings.settings(settings.MergeSettings, set_ or ())

    request = stage.MergeRequest(
        parents=tuple(stores),
        labels=out,
        weights=shares,
        row_weights=rule or "equal",
        top_k=top_k,
        calibrate=how.calibrate,
        threads=how.threads,
        device=device,
        force_unlock=force_unlock,
    )
    return job("merge", json, quiet, lambda output: stage.merge(request, output))


def _rule(text: str | None) -> RowRule | None:
    """The rule that a word in place of numbers names; None for numbers.

    Raises:
        UsageError: it is a word, and names no rule.
    """
    for rule in RULES:
        if text == rule:
            return rule
    if text is not None and text.isalpha():
        raise UsageError(
            f"--weights {text}: expected numbers with commas between them, or one of {', '.join(RULES)}: "
            f"{did_you_mean(text, RULES)}"
        )
    return None
