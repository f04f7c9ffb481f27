"""The command `relabel`: new soft labels from stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options, settings
from teachonce.cli.jobs import Job, job
from teachonce.stages import relabel as stage

NewTemplates = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="T", help="Another sentence around a class name; several are averaged."),
]
Temperatures = Annotated[
    str | None,
    typer.Option("--temperatures", metavar="T,T,...", help="Temperatures whose tail sums are stored; 1 comes first."),
]
ClassFile = Annotated[
    Path | None, typer.Option("--classes", metavar="FILE", help="Only these classes: one class id a line.")
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="RUN", help="Class vectors from prompts that were trained for the teacher."),
]
Head = Annotated[
    Path | None,
    typer.Option("--head", metavar="RUN", help="Class vectors from a head, and prompts, trained for the teacher."),
]
PerSampleTemperature = Annotated[
    float | None,
    typer.Option(
        "--per-sample-temperature",
        metavar="H",
        help="Give each row the temperature at which its soft label has an entropy of H nats.",
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        "--prior",
        metavar="P",
        help="Take the teacher's preference for classes back: balanced, or a FILE of wanted shares (id, tab, share).",
    ),
]
LabelNoise = Annotated[
    float | None,
    typer.Option(
        "--label-noise", metavar="SHARE", help="Make this share of the labels wrong, to try what wrong labels do."
    ),
]
NoiseSeed = Annotated[
    int,
    typer.Option("--noise-seed", metavar="N", min=0, help="With --label-noise: which labels, and what they become."),
]
RelabelTeacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="MODEL", help=f"The teacher of LABELS.zarr, if it has moved, {options.MODEL_HELP}."
    ),
]
RelabelSet = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=options.set_help(settings.RelabelSettings))
]
VocabularyRoot = Annotated[
    Path | None, typer.Option("--root", help="Folder of class lists that are relative and not here.", **options.DIR)
]


def relabel(
    labels: options.LabelsArgument,
    out: options.LabelsOption,
    vocabulary: options.Vocabulary = None,
    template: NewTemplates = None,
    prompts: Prompts = None,
    head: Head = None,
    per_sample_temperature: PerSampleTemperature = None,
    prior: Prior = None,
    label_noise: LabelNoise = None,
    noise_seed: NoiseSeed = 0,
    top_k: options.TopK = None,
    temperatures: Temperatures = None,
    classes: ClassFile = None,
    teacher: RelabelTeacher = None,
    root: VocabularyRoot = None,
    force_unlock: options.ForceUnlock = False,
    set_: RelabelSet = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make new soft labels from stored image embeddings: other names, a better teacher, other temperatures, a prior.

    No image is read. The same command continues a store that is not complete.
    """
    taus = options.listed_numbers(temperatures, "--temperatures")
    how = settings.settings(settings.RelabelSettings, set_ or ())

    request = stage.RelabelRequest(
        parent=labels,
        labels=out,
        vocabulary=vocabulary,
        templates=tuple(template) if template else None,
        prompts=prompts,
        head=head,
        entropy=per_sample_temperature,
        prior=prior,
        label_noise=label_noise,
        noise_seed=noise_seed,
        top_k=top_k,
        temperatures=taus,
        classes=classes,
        teacher=teacher,
        root=root,
        threads=how.threads,
        device=device,
        force_unlock=force_unlock,
    )
    return job("relabel", json, quiet, lambda output: stage.relabel(request, output))
