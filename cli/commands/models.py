"""The command `models`: which CLIPs of open_clip can teach, and which can carry prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import models as models_view
from teachonce.cli.views.printed import print_result
from teachonce.stages import models as stage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Word = Annotated[
    str | None,
    typer.Argument(
        metavar="WORD", help="Only models with this in their name or family: siglip, B-16, laion.", show_default=False
    ),
]


def models(
    word: Word = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """List open_clip's released models: which can teach, and which can carry text and image prompts.

    Below the models stand the counts by family, and why a family is refused. It needs no network and takes no second.
    """

    def work(output: Output) -> int:
        with output.working():
            result: DataclassInstance = stage.models(stage.ModelsRequest(word=word), output)
        print_result(result, output, models_view.view)
        return 0

    return Job(command="models", json=json, quiet=quiet, work=work)
