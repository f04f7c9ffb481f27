"""The command `train`: its options and `--set` become one training configuration and one request."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.recipe.config import TrainConfig, key_types
from teachonce.recipe.config_file import config_text, load_train_config
from teachonce.runs.tensorboard import LogTo
from teachonce.stages import train as stage


def _choices(key: str) -> str:
    """The allowed values of a training key, read off the config so that no list is kept twice."""
    return " or ".join(typing.get_args(key_types()[key]))


TrainStudent = Annotated[
    str | None, typer.Option("--student", metavar="MODEL", help=f"The frozen student, {options.MODEL_HELP}.")
]
TrainOut = Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Run folder to write or resume.")]
Structure = Annotated[
    str | None,
    typer.Option("--structure", metavar="S", help=f"How prompts enter attention: {_choices('structure')}."),
]
Supervision = Annotated[
    str | None,
    typer.Option("--supervision", metavar="S", help=f"What is learnt from: {_choices('supervision')}."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Training configuration, or a shipped one: rpp, rpp-reported, rpp-vitb16, coop, kdpl, kgcoop, maple, "
        "pomp, pomp-vitb16, prograd, promptkd, promptsrc, tip-adapter-f.",
    ),
]
TrainSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the configuration, or threads; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of initialisation and sampling.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Optimiser steps.")]
Init = Annotated[
    Path | None,
    typer.Option("--init", metavar="RUN", help="Start from these prompts: a run, an export, or what import made."),
]
Log = Annotated[
    LogTo | None,
    typer.Option("--log", help="Also write curves for TensorBoard to RUN/tensorboard; events.jsonl is always written."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the run and estimate the GPU memory of a step. Writes nothing.")
]
TrainSelection = Annotated[
    Path | None, typer.Option("--select", metavar="FILE.json", help="Use only what this file of subset selects.")
]
TrainManifest = Annotated[
    str | None, typer.Option("--manifest", metavar="M", help="Refuse a store that was made from another manifest.")
]
TrainSplit = Annotated[
    str | None, typer.Option("--split", metavar="S", help="... from another split; with --manifest: train by default.")
]
TrainVocabulary = Annotated[
    str | None, typer.Option("--vocabulary", metavar="V", help="... or with another class list.")
]
TrainRoot = Annotated[
    Path | None,
    typer.Option("--root", help="Folder of the data: compare some images with what was taught.", **options.DIR),
]
TrainLabels = Annotated[
    Path | None, typer.Argument(help="A label store that teach has written.", show_default=False, **options.STORE)
]


def _resolved(config: Path | None, overrides: list[str], **flags: object) -> TrainConfig:
    """The configuration with the keys that have flags of their own; a flag wins over the file."""
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    return load_train_config(config, [*overrides, *given])


def train(
    labels: TrainLabels = None,
    student: TrainStudent = None,
    out: TrainOut = None,
    structure: Structure = None,
    supervision: Supervision = None,
    config: ConfigFile = None,
    set_: TrainSet = None,
    seed: Seed = None,
    steps: Steps = None,
    select: TrainSelection = None,
    manifest: TrainManifest = None,
    split: TrainSplit = None,
    vocabulary: TrainVocabulary = None,
    root: TrainRoot = None,
    init: Init = None,
    log: Log = None,
    resume: Resume = False,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Learn the prompts of a frozen student from a label store; no teacher, and no images for text prompts.

    LABELS.zarr, --student and --out are required; --print-config needs none, --dry-run no --out. --manifest, --split,
    --vocabulary and --root say what the store must belong to; --root is also where image prompts find their images.
    """
    ours, overrides = settings.split_overrides(settings.TrainSettings, set_ or ())
    resolved = _resolved(config, overrides, structure=structure, supervision=supervision, seed=seed, steps=steps)
    if print_config:
        return Job(command="train", json=json, quiet=quiet, work=lambda output: _print_config(resolved, output))
    request = stage.TrainRequest(
        labels=options.required(labels, "argument 'LABELS.zarr'", "train"),
        student=options.required(student, "option '--student'", "train"),
        out=out if dry_run and not resume else options.required(out, "option '--out'", "train"),
        config=resolved,
        resume=resume,
        threads=settings.settings(settings.TrainSettings, ours).threads,
        device=device,
        selection=select,
        manifest=manifest,
        split=split,
        vocabulary=vocabulary,
        root=root,
        init=init,
        log=() if log is None else (log,),
    )
    return job("train", json, quiet, lambda output: (stage.dry_run if dry_run else stage.train)(request, output))


def _print_config(config: TrainConfig, output: Output) -> int:
    if output.json:
        output.document({"config": config.to_dict()})
    else:
        output.text(config_text(config))
    return 0
