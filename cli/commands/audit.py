"""The command `audit`: what a label store tells of its data and its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import audit as audit_view
from teachonce.cli.views.printed import print_result
from teachonce.cli.words import spelled
from teachonce.stages import audit as stage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AuditOut = Annotated[
    Path,
    typer.Option("--out", metavar="AUDIT.html", help="The page; AUDIT.csv and AUDIT-files are written beside it."),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="NEW.zarr",
        parser=options.location,
        show_default=False,
        help="A store of new photos by the same teacher: have they drifted, and which are in both?",
    ),
]
AgainstRoot = Annotated[
    Path | None, typer.Option("--against-root", help="Folder that holds the new photos.", **options.DIR)
]
Confidence = Annotated[
    float, typer.Option("--confidence", metavar="P", help="List labels that are wrong with at least this probability.")
]


def audit(
    labels: options.LabelsArgument,
    out: AuditOut = Path("audit.html"),
    root: options.Root = None,
    against: Against = None,
    against_root: AgainstRoot = None,
    confidence: Confidence = 0.5,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Look for wrong labels, near-duplicates and a teacher's bias in a label store, and for drift of new photos.

    No model runs and, without --root, no photo is read. AUDIT.csv lists what was found: `subset --clean` leaves it out.
    """

    def work(output: Output) -> int:
        with output.working():
            request = stage.AuditRequest(
                labels=labels,
                out=out,
                root=root,
                against=against,
                against_root=against_root,
                confidence=confidence,
            )
            result: DataclassInstance = stage.audit(request, output, spelled)
        print_result(result, output, audit_view.view)
        return 0

    return Job(command="audit", json=json, quiet=quiet, work=work)
