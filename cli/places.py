"""The options and arguments that say where data and label stores lie: a path, or s3://BUCKET/PATH.

Like `options`; apart, because click makes `s3:/` of `s3://` where it is left to make the path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from teachonce.core.remote import location

STORE: dict[str, Any] = {"metavar": "LABELS.zarr", "parser": location}
DIR: dict[str, Any] = {"metavar": "DIR", "parser": location}

Root = Annotated[Path | None, typer.Option("--root", help="Folder that holds the data, or s3://BUCKET/FOLDER.", **DIR)]
VocabularyRoot = Annotated[
    Path | None, typer.Option("--root", help="Folder of class lists that are relative and not here.", **DIR)
]
TrainRoot = Annotated[
    Path | None, typer.Option("--root", help="Folder of the data: compare some images with what was taught.", **DIR)
]

LabelsOption = Annotated[
    Path, typer.Option("--labels", metavar="OUT.zarr", parser=location, help="Label store to write or continue.")
]
LabelsArgument = Annotated[Path, typer.Argument(help="A label store that teach has written.", **STORE)]
TrainLabels = Annotated[
    Path | None, typer.Argument(help="A label store that teach has written.", show_default=False, **STORE)
]
CacheLabels = Annotated[
    Path | None,
    typer.Argument(help="Working sets beside this store; else the user's own cache.", show_default=False, **STORE),
]
MergeArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="A.zarr B.zarr...", parser=location, help="Stores of the same images, each with embeddings."
    ),
]
