"""Library code does not know how the command line is written.

A flag such as `--out` stands in no string of `pipeline` and `stages`: code names the option (`option("out")`,
`phrase("give {out}")` of teachonce.phrases), and `cli` spells it. A command may be named without flags
(`teachonce inspect`): it is the name of the step that comes next. Docstrings and comments are for readers of the code
and may say what a command offers. Templates of documents (the model card) are no code and show whole commands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from teachonce.cli.app import app
from teachonce.cli.words import flag
from teachonce.phrases import Option, options_of, phrase

ROOT = Path(__file__).resolve().parents[2]
FLAG = re.compile(r"--[a-z{]")
MAKERS = ("option", "another")
ALLOWED = {
    "var(--": "pipeline/reports/svg.py: a variable of CSS",
}
FILES = sorted(file for folder in ("pipeline", "stages") for file in (ROOT / folder).rglob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())


def docstrings(tree: ast.Module) -> set[ast.expr]:
    """The nodes that are docstrings: of modules, classes, functions, and of fields of a class."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def flags_in(tree: ast.Module) -> Iterator[str]:
    documented = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documented:
            text = node.value
        else:
            continue
        if FLAG.search(text) and not any(word in text for word in ALLOWED):
            yield f"line {node.lineno}: {text!r}"


def called(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def options_named(tree: ast.Module) -> Iterator[Option]:
    for call in called(tree, *MAKERS, "phrase"):
        if call.args and isinstance(call.args[0], ast.Constant):
            name = str(call.args[0].value)
            maker = call.func.id if isinstance(call.func, ast.Name) else ""
            yield from options_of(phrase(name)) if maker == "phrase" else [Option(name)]


@every_file
def test_no_string_of_the_library_spells_a_flag(file: Path) -> None:
    assert list(flags_in(ast.parse(file.read_text()))) == []


@every_file
def test_no_option_is_put_into_an_f_string_where_it_would_be_forgotten(file: Path) -> None:
    tree = ast.parse(file.read_text())
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    assert [node.lineno for node in inside if any(called(node, *MAKERS, "setting", "phrase"))] == []


def test_every_option_that_the_library_names_is_one_of_some_command() -> None:
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {word for command in commands for param in command.params for word in (*param.opts, *param.secondary_opts)}
    known |= {"--help"}
    named = {option for file in FILES for option in options_named(ast.parse(file.read_text()))}
    spoken = {flag(Option(option.name)) for option in named if option.kind != "setting"}
    assert len(spoken) > 20 and spoken - known == set()


@pytest.mark.parametrize("code", ['x = "give --out"', 'x = f"--{name} is"', 'raise E(f"{a}", hint="add --top-k 5")'])
def test_the_rule_finds_a_flag(code: str) -> None:
    assert list(flags_in(ast.parse(code)))


def test_the_rule_lets_docstrings_and_dashes_pass() -> None:
    assert not list(flags_in(ast.parse('"""See --help."""\nx = "a -- b"\ny = "--"\n')))
