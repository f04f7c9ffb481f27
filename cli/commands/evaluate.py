"""The command `evaluate`: one data set or a protocol of several."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def evaluate(
    student: options.Student,
    manifest: options.EvaluateManifest = None,
    run: options.RunArgument = None,
    root: places.Root = None,
    protocol: options.EvaluateProtocol = None,
    split: options.EvaluateSplit = None,
    vocabulary: options.Vocabulary = None,
    classes: options.EvaluateClasses = None,
    among: options.EvaluateAmong = None,
    without: options.Without = None,
    template: options.EvaluateTemplate = None,
    wise: options.Wise = 1.0,
    per_class: options.PerClass = None,
    credits: options.Credits = None,
    skip_missing: options.SkipMissing = False,
    set_: options.EvaluateSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Score zero-shot classification: the prompts of RUN, or the hand-written template without one.

    On one data set, --manifest, or on those of a --protocol, which are one table; sets that are not there are listed,
    and the exit code is 5.
    """
    how = settings.settings(settings.EvaluateSettings, set_ or ())
    who = {"run": run, "student": student, "template": template, "wise": wise}
    data = {"root": root, "vocabulary": vocabulary, "classes": classes, "without": without}
    tables = {"per_class": per_class, "credits": credits}
    common: dict[str, Any] = {**who, **data, **tables, **dataclasses.asdict(how)}
    source = _one_set(manifest, skip_missing) if protocol is None else ""
    if protocol is not None and among is not None:
        raise UsageError("--among is what a protocol says of each of its sets", "leave it out")

    def run_stage(output: Output) -> DataclassInstance:
        if protocol is not None:
            from teachonce.stages.evaluate import protocol as protocols

            asked = protocols.ProtocolRequest(
                **common, protocol=protocol, manifest=manifest, split=split, skip_missing=skip_missing
            )
            return protocols.evaluate_protocol(asked, output)
        from teachonce.stages import evaluate as stage

        request = stage.EvaluateRequest(**common, manifest=source, split=split or "val", among=among or "classes")
        return stage.evaluate(request, output)

    return job("evaluate", json, quiet, run_stage)


def _one_set(manifest: str | None, skip_missing: bool) -> str:
    """The manifest of an evaluation without a protocol."""
    if skip_missing:
        raise UsageError("--skip-missing is about the sets of a --protocol", "teachonce evaluate --help")
    return options.required(manifest, "option '--manifest' (or '--protocol')", "evaluate")
