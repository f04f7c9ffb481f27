"""The commands `cluster check` and `cluster script`: what a cluster gives, and a whole run in one allocation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from teachonce.cli import options
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job
from teachonce.cli.views import doctor as findings_view
from teachonce.cli.views.printed import print_result
from teachonce.cluster.description import ClusterSpec
from teachonce.stages import cluster_check as check_stage
from teachonce.stages import cluster_script as script_stage

Description = Annotated[
    Path | None,
    typer.Argument(metavar="FILE.toml", help="A description as for teach --cluster.", show_default=False),
]
CheckScheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="URL", help="Ask a worker of this scheduler: its address or its file."),
]
CheckLabels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="OUT.zarr", parser=options.location, help="Where the store shall lie."),
]
CheckTeacher = Annotated[str | None, typer.Option("--teacher", metavar="MODEL", help="Load this model there.")]
CheckStudents = Annotated[
    list[str] | None, typer.Option("--student", metavar="MODEL", help="Load this model, too; may be repeated.")
]
CheckPlan = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PLAN.json", help="Compare the memory there with this plan's (plan --out)."),
]
ScriptDescription = Annotated[
    Path, typer.Argument(metavar="FILE.toml", help='A description with kind = "slurm".', show_default=False)
]
ScriptOut = Annotated[Path | None, typer.Option("--out", metavar="TEACH.sh", help="Write it there; else print it.")]


def check(
    description: Description = None,
    scheduler: CheckScheduler = None,
    labels: CheckLabels = None,
    root: options.Root = None,
    teacher: CheckTeacher = None,
    student: CheckStudents = None,
    plan: CheckPlan = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Start one worker of a cluster and say what it has: packages, GPU, memory, disks, data, models; what does not fit.

    Nothing is kept. Exit code 6 if something does not fit.
    """
    request = check_stage.ClusterCheckRequest(
        cluster=ClusterSpec(file=description, scheduler=scheduler),
        labels=labels,
        root=root,
        models=tuple(filter(None, (teacher, *(student or ())))),
        plan=plan,
    )

    def work(output: Output) -> int:
        with output.working():
            result = check_stage.cluster_check(request, output)
        print_result(result, output, findings_view.view)
        return int(getattr(result, "exit_code", 0))

    return Job(command="cluster check", json=json, quiet=quiet, work=work)


def script(
    description: ScriptDescription,
    out: ScriptOut = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make a job script that runs a whole teach in one allocation of SLURM: scheduler, workers by srun, the command.

    Submit it with what follows `teachonce teach`: sbatch TEACH.sh MANIFEST --root DATA ... --labels OUT.zarr
    """
    request = script_stage.ClusterScriptRequest(file=description, out=out)

    def work(output: Output) -> int:
        with output.working():
            result = script_stage.cluster_script(request, output)
        if out is None and not json:
            output.text(result.script)
        else:
            output.result(result, _without_script)
        return 0

    return Job(command="cluster script", json=json, quiet=quiet, work=work)


def _without_script(values: dict[str, Any]) -> dict[str, Any]:
    """What a person sees of a script that lies in a file."""
    return {name: value for name, value in values.items() if name != "script"}
