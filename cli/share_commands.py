"""Commands that make what others can use; as in `commands`, each hands back the job that runs its stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.remote import location

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ExportRun = Annotated[Path, typer.Argument(metavar="RUN", help="A run of train, a result of import, or an export.")]
ExportOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; new or empty.")]
ExportClasses = Annotated[
    str | None,
    typer.Option("--classes", metavar="FILE", help="Class list of the weight matrix: a TSV file (id, name) or "
                                                   "timm:NAME. Without it no weights are written."),
]  # fmt: skip
ExportStudent = Annotated[
    str | None,
    typer.Option("--student", metavar="MODEL", help="Where the student is, if not where it was in training."),
]
Licence = Annotated[
    str | None, typer.Option("--licence", metavar="TEXT", help="Of the prompts, such as cc-by-4.0, for the card.")
]
Push = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to this repository of the Hugging Face hub, "
                                                      "which is made, private, where it is not there."),
]  # fmt: skip
PackSource = Annotated[
    Path,
    typer.Argument(metavar="SOURCE", parser=location, help="A label store or an export; or a pack to check or unpack."),
]
PackOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.tar|DIR", help="Where to write: a tar where the name ends in .tar, else a "
                                                       "folder. With --unpack, the folder to unpack into."),
]  # fmt: skip
Check = Annotated[bool, typer.Option("--check", help="Compare every file of a pack with its digest; writes nothing.")]
Unpack = Annotated[bool, typer.Option("--unpack", help="Unpack a tar, compared with its digests while it is written.")]


def export(
    run: ExportRun,
    out: ExportOut,
    classes: ExportClasses = None,
    student: ExportStudent = None,
    licence: Licence = None,
    push: Push = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make a folder that others can use: prompts, class weights for a list of names, model card, digests.

    It is loaded again and compared before it gets its name. No network is used, except for --push.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import export as stage

        request = stage.ExportRequest(run=run, out=out, classes=classes, student=student, licence=licence, push=push)
        return stage.export(request, output)

    return job("export", json, quiet, run_stage)


def pack(
    source: PackSource,
    out: PackOut = None,
    check: Check = False,
    unpack: Unpack = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Put a finished label store or an export into one tar, or a folder, with the digest of every file.

    A store is verified first. The same content gives the same bytes. `tar xf` and `sha256sum -c` read it too.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import pack as stage

        return stage.pack(stage.PackRequest(source=source, out=out, check=check, unpack=unpack), output)

    return job("pack", json, quiet, run_stage)
