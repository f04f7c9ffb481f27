"""The command `import-model`: a CLIP of transformers, or a file of weights, as a folder that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import import_model as stage

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of transformers' CLIPModel (config.json, model.safetensors, preprocessor_config.json), "
        "or a file of weights.",
    ),
]
ModelOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; new or empty.")]
Release = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME/TAG",
        help="For a file of weights: the model of open_clip that it is, or was trained further from.",
        show_default=False,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="With --as, where the tokenizer is not CLIP's own: the folder with its files.",
        show_default=False,
    ),
]


def import_model(
    source: Source,
    out: ModelOut,
    release: Release = None,
    tokenizer: Tokenizer = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make a folder for local-dir: of a transformers CLIP, or of a file of weights and the name of its release.

    Nothing in the files is run, and a tensor that is not used is an error. Weights are not changed.
    """
    request = stage.ImportModelRequest(source=source, out=out, release=release, tokenizer=tokenizer)
    return job("import-model", json, quiet, lambda output: stage.import_model(request, output))
