"""The Typer application: the list of commands, and how every way to fail becomes a message and an exit code.

It does not run stages: a parsed command is a job of `commands`, which `main` starts once parsing is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

import teachonce
from teachonce.cli import streams
from teachonce.cli.commands import (
    ablate,
    audit,
    cache,
    cluster,
    demo,
    doctor,
    evaluate,
    export,
    import_,
    import_model,
    index,
    inspect,
    merge,
    models,
    pack,
    plan,
    push,
    relabel,
    report,
    show,
    status,
    stop,
    subset,
    teach,
    train,
    verify,
)
from teachonce.cli.console import Failure, Output
from teachonce.cli.faults import DEBUG_VARIABLE, explained
from teachonce.cli.jobs import Job
from teachonce.cli.once import Once
from teachonce.cli.words import spelled
from teachonce.core.documents import visible
from teachonce.core.machine import calm_waiting
from teachonce.errors import TeachOnceError, UsageError
from teachonce.objects.patience import give_up, wait_again

INTERRUPTED = 130  # 128 + SIGINT, as shells count
TERMINATED = 143  # 128 + SIGTERM
BUG = 1

EXAMPLES = {  # each fits one line of an 80-column terminal, so that it can be copied whole
    "index": "teachonce index imagenet21k-fall11 --root /data/imagenet",
    "plan": "teachonce plan set.toml --teacher ViT-L-14/openai --labels labels.zarr",
    "teach": "teachonce teach set.toml --teacher ViT-L-14/openai --labels labels.zarr",
    "inspect": "teachonce inspect labels.zarr",
    "verify": "teachonce verify labels.zarr",
    "audit": "teachonce audit labels.zarr --out audit.html",
    "relabel": "teachonce relabel labels.zarr --labels new.zarr --vocabulary names.tsv",
    "merge": "teachonce merge first.zarr second.zarr --labels both.zarr",
    "subset": "teachonce subset labels.zarr --out few.json --shots 16",
    "train": "teachonce train labels.zarr --student ViT-B-16/openai --out runs/first",
    "import": "teachonce import model.pth.tar-50 --student ViT-B-16/openai --out runs/coop",
    "status": "teachonce status runs/first --watch 10",
    "stop": "teachonce stop labels.zarr --wait",
    "cache": "teachonce cache list labels.zarr",
    "evaluate": "teachonce evaluate runs/first --student ViT-B-16/openai --manifest set.toml",
    "ablate": "teachonce ablate grid.toml --labels l.zarr --student ViT-B-16/openai --out g",
    "show": "teachonce show runs",
    "report": "teachonce report grid --out report.html",
    "export": "teachonce export runs/first --out shared --classes classes.tsv",
    "pack": "teachonce pack labels.zarr --out labels.tar",
    "push": "teachonce push labels.zarr s3://BUCKET/labels.zarr",
    "pull": "teachonce pull s3://BUCKET/labels.zarr labels.zarr",
    "demo": "teachonce demo --out teachonce-demo",
    "models": "teachonce models siglip",
    "import-model": "teachonce import-model clip.safetensors --as ViT-B-32/openai --out clip",
    "doctor": "teachonce doctor ViT-B-16/openai --path /data",
    "cluster check": "teachonce cluster check slurm.toml --labels labels.zarr --root /data",
    "cluster script": "teachonce cluster script slurm.toml --out teach.sh",
}
COMMANDS: Mapping[str, Callable[..., Job]] = {
    "index": index.index,
    "plan": plan.plan,
    "teach": teach.teach,
    "inspect": inspect.inspect,
    "verify": verify.verify,
    "audit": audit.audit,
    "relabel": relabel.relabel,
    "merge": merge.merge,
    "subset": subset.subset,
    "train": train.train,
    "import": import_.import_,
    "status": status.status,
    "stop": stop.stop,
    "cache": cache.cache,
    "evaluate": evaluate.evaluate,
    "ablate": ablate.ablate,
    "show": show.show,
    "report": report.report,
    "export": export.export,
    "pack": pack.pack,
    "push": push.push,
    "pull": push.pull,
    "demo": demo.demo,
    "models": models.models,
    "import-model": import_model.import_model,
    "doctor": doctor.doctor,
    "cluster check": cluster.check,
    "cluster script": cluster.script,
}
GROUPS = {"cluster": "See what a cluster gives before a run, or make a script that runs there."}
"""The first words of commands that have two."""
ALIASES = {"eval": "evaluate"}

HELP_NAMES: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
app = typer.Typer(
    name="teachonce",
    context_settings=HELP_NAMES,
    pretty_exceptions_enable=False,  # `main` shows every error itself, without Rich's traceback
    rich_markup_mode="rich",
    epilog="\b\nStart here:\n  teachonce demo\n\n\b\nExit codes: 0 done, 1 a bug, 2 usage or config, "
    "3 data or manifest,\n4 integrity, 5 incomplete but resumable, 6 environment,\n130 Ctrl-C, 143 SIGTERM.",
)


class Terminated(BaseException):
    """SIGTERM arrived. It is a BaseException, so that no `except Exception` on the way up swallows it."""


def _register() -> None:
    groups = {name: _group(name, text) for name, text in GROUPS.items()}
    for name, command in COMMANDS.items():
        first, _, second = name.rpartition(" ")
        place = groups[first] if first else app
        place.command(second, cls=Once, epilog=f"\b\nExample:\n  {EXAMPLES[name]}")(command)
    for alias, name in ALIASES.items():
        app.command(alias, cls=Once, hidden=True, epilog=f"\b\nExample:\n  {EXAMPLES[name]}")(COMMANDS[name])


def _group(name: str, text: str) -> typer.Typer:
    """The place of commands that begin with this word; the word alone shows them, and is a usage error."""
    group = typer.Typer(context_settings=HELP_NAMES, rich_markup_mode="rich")

    @group.callback(invoke_without_command=True, help=text)
    def shown(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(UsageError.exit_code)

    app.add_typer(group, name=name)
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"teachonce {teachonce.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Pre-train CLIP prompts from a teacher that runs only once."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UsageError.exit_code)


_register()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and leave the process with its exit code."""
    streams.prepare()
    os.environ.update(calm_waiting())  # torch, which reads it, is imported where a stage needs it
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit code; every error has been shown.
    """
    output = Output(_command_in(arguments), json="--json" in arguments)  # until the options are parsed
    try:
        with _sigterm_raises():
            job = app(list(arguments), prog_name="teachonce", standalone_mode=False)
            if not isinstance(job, Job):  # --help and --version end inside Typer with an exit code
                return int(job or 0)
            output = Output(job.command, json=job.json, quiet=job.quiet)
            return job.work(output)
    except SystemExit as left:
        if not isinstance(left.__context__, BrokenPipeError):
            raise
        return 0  # the program that read --help or `status --watch` has closed the pipe
    except (Exception, KeyboardInterrupt, Terminated) as problem:  # noqa: BLE001 - the last place that can explain it
        if os.environ.get(DEBUG_VARIABLE):
            sys.stderr.write(visible("".join(traceback.format_exception(problem))))
        failure = describe(problem, arguments)
        output.failure(failure)
        return failure.exit_code


def describe(problem: BaseException, arguments: Sequence[str] = ()) -> Failure:
    """What to tell the person about an exception, and the exit code that belongs to it."""
    kind = type(problem).__name__
    if isinstance(problem, TeachOnceError):
        return Failure(
            kind=kind, message=spelled(problem.message), hint=spelled(problem.hint), exit_code=problem.exit_code
        )
    if isinstance(problem, typer.TyperException):
        near = sorted(getattr(problem, "possibilities", None) or ())  # known names that resemble the unknown one
        message = problem.format_message() if not near else f"{problem.message} (did you mean: {', '.join(near)})"
        hint = " ".join(filter(None, ("teachonce", _command_in(arguments), "--help")))
        return Failure(kind="UsageError", message=message, hint=hint, exit_code=UsageError.exit_code)
    if isinstance(problem, KeyboardInterrupt):
        return Failure(kind=kind, message="interrupted", hint="", exit_code=INTERRUPTED)
    if isinstance(problem, Terminated):
        return Failure(kind=kind, message="stopped by SIGTERM", hint="", exit_code=TERMINATED)
    fault = explained(problem)
    if fault is not None:
        return describe(fault)
    hint = f"this is a bug; {DEBUG_VARIABLE}=1 before the same command shows where it happened"
    return Failure(kind=kind, message=f"{kind}: {problem}", hint=hint, exit_code=BUG)


def _command_in(arguments: Sequence[str]) -> str | None:
    """The command that the arguments name, or None; used for errors of parsing, when no parsed command exists."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    name = " ".join(words[:2]) if words[:1] and words[0] in GROUPS else "".join(words[:1])
    name = ALIASES.get(name, name)
    return name if name in EXAMPLES else None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM unwinds the stack like Ctrl-C does, so that every `finally` runs."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may set signal handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    waits_are_cut = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if waits_are_cut:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
        if waits_are_cut:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        wait_again()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: threads that wait for a server of S3 must not hold up the end."""
    give_up()
    signal.default_int_handler(number, frame)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    give_up()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the clean-up that the first starts
    raise Terminated
