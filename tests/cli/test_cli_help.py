"""Help, version and usage errors: quick, light, with an example and a suggestion.

No stage runs here.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from teachonce.cli import app

HEAVY = ("torch", "torchvision", "zarr", "dask", "distributed", "numpy", "open_clip", "timm", "PIL")
COMMANDS = sorted(app.EXAMPLES)
MOST_OPTIONS = 15  # besides --json and --quiet
# What to teach (12), where (4), what a run of days needs (5), rehearsals (2); plan takes the same, and its own 3.
# What train learns (8), what its data must be (5), the run itself (5), a rehearsal (1).
# What evaluate compares (6), what it reads and is sure of (7), where and how (3).
# What relabel makes of which names (6), of the teacher (5), of the labels (2), where and how (5).
MORE_OPTIONS = {"teach": 23, "plan": 21, "train": 19, "evaluate": 16, "relabel": 18}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

MOST_MODULES = 700  # a help text needs some 550; torch alone brings 1,500 (times: `benchmarks/start_up.py`)
LINES: dict[tuple[str, ...], int] = {
    ("--help",): 0,
    ("--version",): 0,
    (): 2,
    ("teech",): 2,
    **{(*name.split(), "--help"): 0 for name in COMMANDS},
    **{(*name.split(), "--no-such-option"): 2 for name in COMMANDS},
    ("cluster",): 2,
    ("train", "x.zarr", "--set", "no_such_key=1"): 2,
    ("train", "--print-config"): 0,
    ("teach", "--labels", "x.zarr"): 2,
    ("verify",): 2,
}
"""Command lines that end before a stage, and their exit codes."""
# Runs each command line of stdin in a fork of a process that has loaded the command line and nothing else, and prints
# for each the exit code, the heavy modules that it leaves loaded, and how many modules there are.
PROBE = f"""
import json, os, sys
from teachonce.cli.app import run
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for arguments in json.load(sys.stdin):
    child = os.fork()
    if not child:
        code = run(arguments)
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        answers.write(json.dumps([code, heavy, len(sys.modules)]) + "\\n")
        answers.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def probed() -> dict[tuple[str, ...], Any]:
    """What each of LINES leaves behind."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(list(LINES)), capture_output=True, text=True, timeout=300
    )
    return dict(zip(LINES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line) or "nothing")
def test_nothing_heavy_is_imported_before_a_stage_runs(
    line: tuple[str, ...], probed: dict[tuple[str, ...], Any]
) -> None:
    *outcome, modules = probed[line]
    assert outcome == [LINES[line], []]
    assert modules < MOST_MODULES


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_an_example_that_parses(command: str, teachonce_here: Callable[..., Any]) -> None:
    ended = teachonce_here(*command.split(), "--help")
    assert ended.code == 0
    line = next(line.strip() for line in ended.out.splitlines() if line.strip().startswith("teachonce "))
    assert line == app.EXAMPLES[command], "the example must stay whole on 80 columns"
    ended = teachonce_here(*line.split()[1:])
    assert ended.code == (5 if command == "ablate" else 0), "the stand-in of ablate has a failed cell"


def test_top_help_lists_every_command_but_no_alias(teachonce_here: Callable[..., Any]) -> None:
    text = teachonce_here("--help").out
    assert all(f" {name.split()[0]} " in text for name in COMMANDS)
    assert " eval " not in text
    assert "teachonce demo" in text


def test_no_command_shows_help_and_is_a_usage_error(teachonce_here: Callable[..., Any]) -> None:
    ended = teachonce_here()
    assert ended.code == 2
    assert "Usage: teachonce" in ended.out


def test_version(teachonce_here: Callable[..., Any]) -> None:
    import teachonce

    assert teachonce_here("--version").out == f"teachonce {teachonce.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["teech"], "'teach'"),
        (["teach", "m.toml", "--lables", "x.zarr"], "--labels"),
        (["train", "x.zarr", "--structre", "shared"], "--structure"),
        (["train", "x.zarr", "--structure", "unshard"], "'unshared'"),
        (["train", "x.zarr", "--set", "learning_rte=1"], "'learning_rate'"),
        (["teach", "m.toml", "--labels", "x.zarr", "--set", "batchsize=1"], "'batch_size'"),
        (["teach", "m.toml", "--labels", "x.zarr", "--set", "precision=bf-16"], "'bf16'"),
        (["cache", "clera"], "'clear'"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(
    arguments: list[str], suggestion: str, teachonce_here: Callable[..., Any]
) -> None:
    ended = teachonce_here(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert "id you mean" in ended.err
    assert suggestion in ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_few_options(command: str) -> None:
    function = app.COMMANDS[command]
    hints = typing.get_type_hints(function, include_extras=True)
    option = type(typer.Option())
    declared = [name for name in inspect.signature(function).parameters if _is_option(hints[name], option)]
    assert {"json", "quiet"} <= set(declared)
    assert len(declared) - 2 <= MORE_OPTIONS.get(command, MOST_OPTIONS), declared


def test_every_option_that_a_message_names_exists(project: Path, teachonce_here: Callable[..., Any]) -> None:
    """A hint that names an option which no command takes sends its reader into the next error."""
    known = {flag for name in COMMANDS for flag in FLAG.findall(teachonce_here(*name.split(), "--help").out)}
    named = {
        f"{file.name}: {flag}"
        for folder in ("pipeline", "stages")
        for file in (project / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for flag in FLAG.findall(node.value)
        if flag not in known
    }
    assert sorted(named) == []


def _is_option(hint: Any, option: type) -> bool:
    return any(isinstance(item, option) for item in typing.get_args(hint)[1:])


def test_no_command_imports_a_stage_inside_a_function(project: Path) -> None:
    """What a stage is asked is light to import; what it does is imported by the stage itself, once it is asked."""
    inner = [
        f"{file.name}: {inside.module}"
        for file in (project / "cli").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for inside in ast.walk(node)
        if isinstance(inside, ast.ImportFrom) and str(inside.module).startswith("teachonce")
    ]
    assert inner == []
