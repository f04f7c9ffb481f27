"""The command `doctor`: whether this machine can do the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import doctor as doctor_view
from teachonce.cli.views.printed import print_result
from teachonce.stages import doctor as stage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=f"Also try this model, {options.MODEL_HELP}.", show_default=False),
]
Where = Annotated[
    Path, typer.Option("--path", metavar="DIR", help="Where stores and runs shall lie: its disk and locks are tried.")
]


def doctor(
    model: Model = None,
    path: Where = Path(),
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Say whether this machine can do the work: OK, WARN or FAIL on each thing that runs need, and what to do.

    It takes some seconds, needs no network and leaves nothing behind. Exit code 6 if something fails.
    """

    def work(output: Output) -> int:
        with output.working():
            result: DataclassInstance = stage.doctor(stage.DoctorRequest(path=path, model=model), output)
        print_result(result, output, doctor_view.view)
        code: int = getattr(result, "exit_code", 0)
        return code

    return Job(command="doctor", json=json, quiet=quiet, work=work)
