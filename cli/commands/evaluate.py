"""The command `evaluate`: one data set or a protocol of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options, settings
from teachonce.cli.jobs import Job, job
from teachonce.errors import UsageError
from teachonce.evaluation.choice import Among, Entrant, SetChoice, Work
from teachonce.stages import evaluate as stage

EvaluateManifest = Annotated[
    str | None, typer.Option("--manifest", metavar="M", help="A manifest file, or the name of a shipped one.")
]
EvaluateProtocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="P",
        help="Sets that make one table: cross-dataset, domain-generalisation, in-vocabulary, base-to-novel, or a file.",
    ),
]
EvaluateSplit = Annotated[
    str | None,
    typer.Option("--split", metavar="S", help="Split of the manifest to read.  \\[default: val]", show_default=False),
]
EvaluateClasses = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="Only images of these classes: one class id a line; or base, novel, timm:NAME.",
    ),
]
EvaluateAmong = Annotated[
    Among | None,
    typer.Option(
        "--among",
        help="With --classes: whether their names compete, or all of the vocabulary.  \\[default: classes]",
        show_default=False,
    ),
]
Without = Annotated[
    Path | None,
    typer.Option(
        "--without", metavar="FILE", help="Take the names of these classes, and homonyms, out of the competition."
    ),
]
EvaluateTemplate = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="T",
        help="Sentence around a class name, {} is the name; several are averaged; by default the manifest's.",
    ),
]
Credits = Annotated[
    Path | None,
    typer.Option(
        "--credits", metavar="FILE.npy", help="Also write each image's credit, 0 to 1, here; the template's beside it."
    ),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="With --protocol: sets that are not there do not change the exit code.")
]
RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="A run folder of train; without it the template is scored.", show_default=False),
]
Wise = Annotated[
    float,
    typer.Option(
        "--wise",
        metavar="A",
        min=0.0,
        max=1.0,
        help="Mix class features with the template's: 0 is the template, 1 the prompts (WiSE-FT).",
    ),
]
PerClass = Annotated[
    Path | None, typer.Option("--per-class", metavar="FILE.csv", help="Also write each class's accuracy here.")
]
EvaluateSet = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=options.set_help(settings.EvaluateSettings))
]


def evaluate(
    student: options.Student,
    manifest: EvaluateManifest = None,
    run: RunArgument = None,
    root: options.Root = None,
    protocol: EvaluateProtocol = None,
    split: EvaluateSplit = None,
    vocabulary: options.Vocabulary = None,
    classes: EvaluateClasses = None,
    among: EvaluateAmong = None,
    without: Without = None,
    template: EvaluateTemplate = None,
    wise: Wise = 1.0,
    per_class: PerClass = None,
    credits: Credits = None,
    skip_missing: SkipMissing = False,
    set_: EvaluateSet = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Score zero-shot classification: the prompts of RUN, or the hand-written template without one.

    On one data set, --manifest, or on those of a --protocol, which are one table; sets that are not there are listed,
    and the exit code is 5.
    """
    how = settings.settings(settings.EvaluateSettings, set_ or ())
    entrant = Entrant(student=student, run=run, templates=tuple(template or ()), wise=wise)
    work = Work(batch_size=how.batch_size, threads=how.threads, device=device, cache=how.cache)
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
