"""The options of all commands, each spelled once, and the settings that `--set` may change.

It parses no command line itself, opens no file, and checks only what can be known without a stage.

Flags say what is computed; `--set` says how. That keeps every command below 15 options.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from teachonce.cli.settings import EvaluateSettings, MergeSettings, RelabelSettings, TeachSettings, keys_of
from teachonce.errors import UsageError, did_you_mean
from teachonce.models.spec import EmbeddingKind
from teachonce.runs.tensorboard import LogTo
from teachonce.training.config import key_types

T = TypeVar("T")
CacheAction = typing.Literal["list", "clear"]
Among = typing.Literal["classes", "all"]


def listed_numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """The numbers of an option such as `--weights 0.5,0.5`; None where it was left out.

    Raises:
        UsageError: something between the commas is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as problem:
        raise UsageError(f"{name} {text}: expected numbers with commas between them, such as 1,2,4") from problem


def one_manifest(argument: str | None, option: str | None, command: str) -> str:
    """The manifest, whichever way it was given.

    Raises:
        UsageError: given twice, or not at all.
    """
    if argument is not None and option is not None:
        raise UsageError(f"the manifest is given twice: {argument} and --manifest {option}", "drop one of the two")
    manifest = argument if option is None else option
    if manifest is None:
        raise UsageError("Missing argument 'MANIFEST'", f"teachonce {command} --help")
    return manifest


def cache_action(word: str) -> CacheAction:
    """What `cache` should do.

    Raises:
        UsageError: it is no action; suggests the nearest.
    """
    known: tuple[CacheAction, ...] = typing.get_args(CacheAction)
    for action in known:
        if word == action:
            return action
    raise UsageError(f"no such action '{word}': {did_you_mean(word, known)}", "teachonce cache --help")


def required(value: T | None, name: str, command: str) -> T:
    """A value that only some uses of the command may leave out.

    Raises:
        UsageError: it was left out.
    """
    if value is None:
        raise UsageError(f"Missing {name}", f"teachonce {command} --help")
    return value


def _choices(key: str) -> str:
    """The allowed values of a training key, read off the config so that no list is kept twice."""
    return " or ".join(typing.get_args(key_types()[key]))


def _set_help(kind: type[Any]) -> str:
    return f"Change how it runs; may be repeated. Keys: {', '.join(keys_of(kind))}."


REHEARSAL = "Rehearsals"
WHERE = "Where it runs"  # a heading in the help of teach, which has the most options
MODEL_HELP = "as open_clip names it: ViT-B-16/openai, hf-hub:ORG/NAME, local-dir:PATH"

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No notes, no progress: only the result and errors.")]

ManifestArgument = Annotated[
    str | None,
    typer.Argument(metavar="MANIFEST", help="A manifest file, or the name of a shipped one.", show_default=False),
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", metavar="M", help="The same as MANIFEST.")]
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
    str | None,
    typer.Option(
        "--template", metavar="T", help="The sentence around a class name, with {} for it; by default the manifest's."
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
IndexSplit = Annotated[
    str | None, typer.Option("--split", metavar="S", help="Only this split of the manifest.", show_default=False)
]
Digests = Annotated[
    bool, typer.Option("--digests", help="Also read released files whole and compare published digests.")
]
Split = Annotated[str, typer.Option("--split", metavar="S", help="Split of the manifest to read.")]
Views = Annotated[
    int,
    typer.Option(
        "--views",
        metavar="V",
        min=1,
        max=255,
        help="Views of each image: the first is the evaluation crop, others random crops and flips.",
    ),
]
TeachShots = Annotated[
    int | None,
    typer.Option(
        "--shots", metavar="N", min=1, help="Teach N samples of each class only; OUT.zarr.shots.json lists them."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="URL",
        help="Use the workers of this Dask scheduler: tcp://HOST:PORT.",
        rich_help_panel=WHERE,
    ),
]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE.toml",
        help="Start the workers this file describes: SLURM, GPUs, local.",
        rich_help_panel=WHERE,
    ),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Compute the chunks again in which images failed.")]
DryRunIo = Annotated[
    bool,
    typer.Option(
        "--dry-run-io",
        help="Only read and decode images for half a minute: how fast? Writes nothing.",
        rich_help_panel=REHEARSAL,
    ),
]
DummyImages = Annotated[
    bool,
    typer.Option(
        "--dummy-images",
        help="Only run the models on made-up pixels for half a minute. Writes nothing.",
        rich_help_panel=REHEARSAL,
    ),
]
PlanLabels = Annotated[Path, typer.Option("--labels", metavar="OUT.zarr", help="Label store that teach would write.")]
Rate = Annotated[
    float | None,
    typer.Option("--rate", metavar="R", help="Images a second of all workers, where known: no model is loaded then."),
]
PlanOut = Annotated[Path | None, typer.Option("--out", metavar="PLAN.json", help="Keep the plan, to compare later.")]
Compare = Annotated[
    Path | None,
    typer.Option("--compare", metavar="PLAN.json", help="Set this plan beside what --labels holds now; nothing else."),
]
Vocabulary = Annotated[
    str | None,
    typer.Option("--vocabulary", metavar="V", help="Class list, if not the manifest's own."),
]

Templates = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="T", help="Sentence around a class name, {} is the name; several are averaged."),
]
Embeddings = Annotated[
    EmbeddingKind | None,
    typer.Option("--embeddings", help="Keep the teacher's image embeddings too: any later vocabulary without images."),
]

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
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help=f"The frozen teacher, {MODEL_HELP}. Without it: hard labels only."),
]
TeachStudents = Annotated[
    list[str] | None,
    typer.Option("--student", metavar="MODEL", help="Also keep this student's image features; may be repeated."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", min=1, help="Classes kept of each soft label.")]
Workers = Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Dask worker processes.")]
TeachWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Worker processes on this machine (default 1), one a GPU.",
        rich_help_panel=WHERE,
    ),
]
ChunkRows = Annotated[
    int | None,
    typer.Option("--chunk-rows", metavar="N", min=1, help="Rows of one task and one commit; fixed by the first run."),
]
ForceUnlock = Annotated[
    bool, typer.Option("--force-unlock", help="Take over the lock of a run on another host that is surely dead.")
]
TeachSet = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_set_help(TeachSettings))]

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
RelabelTeacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help=f"The teacher of LABELS.zarr, if it has moved, {MODEL_HELP}."),
]
RelabelSet = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_set_help(RelabelSettings))]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="W,W,...", help="How much each store counts; equal by default.")
]
MergeSet = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_set_help(MergeSettings))]
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

Student = Annotated[str, typer.Option("--student", metavar="MODEL", help=f"The frozen student, {MODEL_HELP}.")]
TrainStudent = Annotated[
    str | None, typer.Option("--student", metavar="MODEL", help=f"The frozen student, {MODEL_HELP}.")
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
        help="Training configuration, or a shipped one: rpp, rpp-reported, rpp-vitb16, pomp-vitb16.",
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

ActionArgument = Annotated[str, typer.Argument(metavar="list|clear", help="What to do.")]

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
EvaluateSet = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_set_help(EvaluateSettings))]

DemoOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything that the demo writes.")]
DemoSeeds = Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Runs of each configuration.")]
DemoTrainModels = Annotated[
    Path | None,
    typer.Option("--train-models", metavar="DIR", hidden=True, help="Maintainers: train the demo's models into DIR."),
]
