"""The command `evaluate`: one data set or a protocol of several."""

from __future__ import annotations

from teachonce.cli import options, places, settings
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError
from teachonce.evaluation.choice import Among, Entrant, SetChoice, Work
from teachonce.stages import evaluate as stage


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
    entrant = Entrant(student=student, run=run, template=template, wise=wise)
    work = Work(batch_size=how.batch_size, threads=how.threads, cache=how.cache)
    files = stage.Files(per_class=per_class, credits=credits)
    given = stage.Given(
        root=root, manifest=manifest, split=split, vocabulary=vocabulary, classes=classes, without=without
    )
    if protocol is None:
        data = _one_set(given, among or "classes", skip_missing)
        request = stage.EvaluateRequest(entrant=entrant, data=data, files=files, work=work)
        return job("evaluate", json, quiet, lambda output: stage.evaluate(request, output))
    if among is not None:
        raise UsageError("--among is what a protocol says of each of its sets", "leave it out")
    asked = stage.ProtocolRequest(
        protocol=protocol, entrant=entrant, given=given, files=files, work=work, skip_missing=skip_missing
    )
    return job("evaluate", json, quiet, lambda output: stage.evaluate_protocol(asked, output))


def _one_set(given: stage.Given, among: Among, skip_missing: bool) -> SetChoice:
    """What is evaluated without a protocol."""
    if skip_missing:
        raise UsageError("--skip-missing is about the sets of a --protocol", "teachonce evaluate --help")
    return SetChoice(
        manifest=options.required(given.manifest, "option '--manifest' (or '--protocol')", "evaluate"),
        root=given.root,
        split=given.split or "val",
        vocabulary=given.vocabulary,
        classes=given.classes,
        among=among,
        without=given.without,
    )
