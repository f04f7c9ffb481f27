"""The command `pack`: one file or folder of a store or an export, with a digest for each file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.objects.remote import location
from teachonce.stages import pack as stage

PackSource = Annotated[
    Path,
    typer.Argument(metavar="SOURCE", parser=location, help="A label store or an export; or a pack to check or unpack."),
]
PackOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.tar|DIR",
        help="Where to write: a tar where the name ends in .tar, else a "
        "folder. With --unpack, the folder to unpack into.",
    ),
]
Check = Annotated[bool, typer.Option("--check", help="Compare every file of a pack with its digest; writes nothing.")]
Unpack = Annotated[bool, typer.Option("--unpack", help="Unpack a tar, compared with its digests while it is written.")]


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
    request = stage.PackRequest(source=source, out=out, check=check, unpack=unpack)
    return job("pack", json, quiet, lambda output: stage.pack(request, output))
