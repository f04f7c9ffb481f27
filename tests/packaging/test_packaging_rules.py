"""Rules of the house that a parser can check: direction of imports, forbidden calls, sizes, docstrings, one name.

It reads the shipped tree as text and imports none of it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "pipeline": "teachonce",
    "stages": "teachonce.stages",
    "cli": "teachonce.cli",
    "data_manifests": "teachonce.data_manifests",
    "configs": "teachonce.configs",
}
FILES = sorted(file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py"))
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 50

# Each layer and the layers it may not know.
FORBIDDEN_IMPORTS = {"pipeline": ("teachonce.stages", "teachonce.cli"), "stages": ("teachonce.cli",)}
ENTRY_POINT = ROOT / "pipeline" / "__main__.py"  # `python -m teachonce` has to live here and has to call the cli

FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
FORBIDDEN_NAMES = ("eval", "exec", "compile", "print", "__import__")
FORBIDDEN_METHODS = ("extractall", "system", "popen")  # archives are never unpacked; no shell
FORBIDDEN_KEYWORDS = {"shell": True, "strict": False, "allow_pickle": True, "weights_only": False}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Every dotted name that a file imports; `from a import b` may mean the module `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the modules or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def forbidden(tree: ast.Module, package: str) -> Iterator[str]:
    """Every use of something that runs data as code, leaves the process, or hides an error."""
    for name in imported(tree, package):
        if is_within(name, FORBIDDEN_MODULES):
            yield f"import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_NAMES:
            yield f"line {node.lineno}: {node.func.id}()"
        if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
            yield f"line {node.lineno}: .{node.func.attr}()"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg in FORBIDDEN_KEYWORDS and value is FORBIDDEN_KEYWORDS[keyword.arg]:
                yield f"line {node.lineno}: {keyword.arg}={value}"


def test_there_are_files() -> None:
    assert len(FILES) > 10, "every other test here would pass on nothing"


@every_file
def test_imports_go_one_way(file: Path) -> None:
    folder = file.relative_to(ROOT).parts[0]
    if file == ENTRY_POINT:
        return
    names = set(imported(parsed(file), PACKAGES[folder]))
    assert sorted(name for name in names if is_within(name, FORBIDDEN_IMPORTS.get(folder, ()))) == []


@every_file
def test_nothing_forbidden_is_called(file: Path) -> None:
    assert list(forbidden(parsed(file), PACKAGES[file.relative_to(ROOT).parts[0]])) == []


@every_file
def test_a_file_fits_in_one_reading(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_FILE_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parsed(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert long == []


@every_file
def test_a_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(parsed(file))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "archive.extractall()",
        "run('x', shell=True)",
        "model.load_state_dict(x, strict=False)",
        "try:\n    x()\nexcept:\n    pass",
        "print(1)",
    ],
)
def test_the_rule_finds_what_it_forbids(code: str) -> None:
    assert len(set(forbidden(ast.parse(code), "teachonce"))) >= 1


@pytest.mark.parametrize(
    "code",
    ["import teachonce.cli", "from teachonce import cli", "from teachonce.cli import main", "from . import cli"],
)
def test_the_import_rule_sees_every_form(code: str) -> None:
    assert any(is_within(name, ("teachonce.cli",)) for name in imported(ast.parse(code), "teachonce"))


@pytest.mark.parametrize("code", ["import stages", "from pipeline import errors", "import cli.app as x"])
def test_ruff_refuses_a_second_name(code: str) -> None:
    """From the root of the checkout `import stages` works, and gives a second copy of every class."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "-"]
    done = subprocess.run(command, cwd=ROOT, input=code + "\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "TID251" in done.stdout


def test_ruff_checks_for_a_second_name_by_default() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "TID251" in settings["select"]
    assert {"pipeline", "stages", "cli"} <= set(settings["flake8-tidy-imports"]["banned-api"])
