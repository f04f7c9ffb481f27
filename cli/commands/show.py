"""The command `show`: the essence of runs in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import show as show_view
from teachonce.cli.views.printed import print_result
from teachonce.stages import show as stage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Shown = Annotated[
    Path, typer.Argument(metavar="DIR", help="A run, grid or other folder with runs; or a results.json, or a store.")
]


def show(
    path: Shown,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show the essence of runs in the terminal: settings, accuracy against the base, the loss as a line."""

    def work(output: Output) -> int:
        with output.working():
            result: DataclassInstance = stage.show(stage.ShowRequest(path=path), output)
        print_result(result, output, show_view.view)
        return 0

    return Job(command="show", json=json, quiet=quiet, work=work)
