"""The command `import`: prompts of another project's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.stages import import_ as stage
from teachonce.towers.structures import Position

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A file of Dassl, such as .../prompt_learner/model.pth.tar-50.")
]
ImportOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; new or empty.")]
SlotPosition = Annotated[
    Position,
    typer.Option(
        "--position",
        help="Where the context stands, seen from the name: CoOp's end, middle or front. "
        "The file does not say; POMP's, MaPLe's and PromptSRC's are before.",
    ),
]


def import_(
    checkpoint: Checkpoint,
    student: options.Student,
    out: ImportOut,
    position: SlotPosition = "before",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make prompts out of a checkpoint of CoOp, POMP, KgCoOp, ProGrad, MaPLe or PromptSRC.

    For evaluate and for train --init. Nothing in the file is run: only tensors are read.
    The student must be the one it was trained on.
    """
    request = stage.ImportRequest(checkpoint=checkpoint, student=student, out=out, position=position)
    return job("import", json, quiet, lambda output: stage.import_(request, output))
