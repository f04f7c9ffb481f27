"""The options and arguments that several commands share, each spelled once; a command's file spells what it alone has.

This module parses no command line, opens no file, and checks only what can be known without a stage.

Flags say what is computed; `--set` says how, so that commands have few flags.

Data and label stores lie at a path or at s3://BUCKET/PATH. `location` parses such arguments: click makes `s3:/` of
`s3://` where it is left to make the path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from teachonce.cli.settings import TeachSettings, keys_of
from teachonce.core.devices import require_device
from teachonce.errors import UsageError
from teachonce.models.spec import EmbeddingKind
from teachonce.objects.remote import location

T = TypeVar("T")


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


def device(text: str) -> str:
    """The value of `--device`.

    Raises:
        UsageError: it names no device.
    """
    return require_device(text)


def required(value: T | None, name: str, command: str) -> T:
    """A value that only some uses of the command may leave out.

    Raises:
        UsageError: it was left out.
    """
    if value is None:
        raise UsageError(f"Missing {name}", f"teachonce {command} --help")
    return value


def set_help(kind: type[Any]) -> str:
    """The help of `--set` for a command with these settings."""
    return f"Change how it runs; may be repeated. Keys: {', '.join(keys_of(kind))}."


WHERE = "Where it runs"  # a heading in the help of `teach`, `plan` and `ablate`
MODEL_HELP = "as open_clip names it: ViT-B-16/openai, hf-hub:ORG/NAME, local-dir:PATH"

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No notes, no progress: only the result and errors.")]

ManifestArgument = Annotated[
    str | None,
    typer.Argument(metavar="MANIFEST", help="A manifest file, or the name of a shipped one.", show_default=False),
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", metavar="M", help="The same as MANIFEST.")]
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
        help="Use the workers of this Dask scheduler: tcp://HOST:PORT, or the path of its scheduler file.",
        rich_help_panel=WHERE,
    ),
]
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE.toml",
        help="Start the workers this file describes: SLURM, PBS, LSF, SGE, Kubernetes, GPUs, local.",
        rich_help_panel=WHERE,
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option("--vocabulary", metavar="V", help="Class list, if not the manifest's own."),
]

Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="D",
        parser=device,
        help="auto (a GPU where there is one), cpu, mps, cuda, or one GPU: cuda:1.",
        rich_help_panel=WHERE,
    ),
]

Templates = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="T", help="Sentence around a class name, {} is the name; several are averaged."),
]
Embeddings = Annotated[
    EmbeddingKind | None,
    typer.Option("--embeddings", help="Keep the teacher's image embeddings too: any later vocabulary without images."),
]

Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help=f"The frozen teacher, {MODEL_HELP}. Without it: hard labels only."),
]
TeachStudents = Annotated[
    list[str] | None,
    typer.Option("--student", metavar="MODEL", help="Also keep this student's image features; may be repeated."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", min=1, help="Classes kept of each soft label.")]
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
TeachSet = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=set_help(TeachSettings))]


Student = Annotated[str, typer.Option("--student", metavar="MODEL", help=f"The frozen student, {MODEL_HELP}.")]

STORE: dict[str, Any] = {"metavar": "LABELS.zarr", "parser": location}
DIR: dict[str, Any] = {"metavar": "DIR", "parser": location}

Root = Annotated[Path | None, typer.Option("--root", help="Folder that holds the data, or s3://BUCKET/FOLDER.", **DIR)]

LabelsOption = Annotated[
    Path, typer.Option("--labels", metavar="OUT.zarr", parser=location, help="Label store to write or continue.")
]
LabelsArgument = Annotated[Path, typer.Argument(help="A label store that teach has written.", **STORE)]
