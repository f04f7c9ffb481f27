"""The rooms of `pipeline/` have an order, and the tree, the packaging and the docstrings agree on it.

It reads the tree as text and imports none of it. Each room's `__init__` says which rooms it may import ("May import:
core, data."): that line is the rule that is checked here.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "pipeline"
# From the ground floor up: a room may import what stands before it here, never what stands after it.
ORDER = (
    "core",
    "objects",
    "watching",
    "data",
    "towers",
    "heads",
    "models",
    "foreign",
    "keeping",
    "labels",
    "batch",
    "cluster",
    "softening",
    "teaching",
    "rows",
    "recipe",
    "losses",
    "training",
    "memory",
    "evaluation",
    "search",
    "runs",
    "reports",
    "audit",
    "sharing",
    "demo",
)
AT_THE_ROOT = ("__init__", "__main__", "errors", "phrases")  # every room may import the last two; two are ways in
MOST_FILES = 15  # of a room, its `__init__` among them: a person can hold so many names in mind
PACKAGES = {  # folder of the checkout -> package
    "pipeline": "teachonce",
    "stages": "teachonce.stages",
    "cli": "teachonce.cli",
    "data_manifests": "teachonce.data_manifests",
    "configs": "teachonce.configs",
}

every_room = pytest.mark.parametrize("room", ORDER)


def rooms_imported(code: str) -> Iterator[str]:
    """The rooms that a module's imports name, wherever in the file they stand."""
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "teachonce":
            names = [f"teachonce.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == "teachonce" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]


def said(room: str) -> str:
    """The docstring of a room."""
    tree = ast.parse((PIPELINE / room / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def allowed(room: str) -> set[str]:
    """The rooms that a room's docstring says it may import."""
    line = re.search(r"^May import: (.*)\.$", said(room), re.MULTILINE)
    assert line, f"pipeline/{room}/__init__.py has no line `May import: ....`"
    return set() if line[1] == "no other room" else set(line[1].split(", "))


def test_the_rooms_are_those_of_the_order() -> None:
    folders = {file.parent.name for file in PIPELINE.glob("*/*.py")}
    assert folders == set(ORDER)
    assert {file.stem for file in PIPELINE.glob("*.py")} == set(AT_THE_ROOT)


@every_room
def test_a_room_may_import_only_rooms_below_it(room: str) -> None:
    assert allowed(room) <= set(ORDER[: ORDER.index(room)])


@every_room
def test_a_room_imports_what_its_docstring_allows(room: str) -> None:
    imported = {
        (file.name, other)
        for file in (PIPELINE / room).glob("*.py")
        for other in rooms_imported(file.read_text(encoding="utf-8"))
    }
    refused = sorted((name, other) for name, other in imported if other not in allowed(room) | {room})
    assert refused == [], f"the docstring of pipeline/{room} allows {sorted(allowed(room))}"


@every_room
def test_a_docstring_allows_no_room_that_is_not_needed(room: str) -> None:
    needed = {
        other for file in (PIPELINE / room).glob("*.py") for other in rooms_imported(file.read_text(encoding="utf-8"))
    }
    assert allowed(room) - needed == set()


@every_room
def test_a_room_says_what_it_holds_and_where_to_begin(room: str) -> None:
    assert re.match(r".{20,}", said(room)), "the first line says what the room holds"
    begin = re.search(r"^Begin with: (.*)", said(room), re.MULTILINE | re.DOTALL)
    assert begin, f"pipeline/{room}/__init__.py has no line `Begin with: ...`"
    names = re.findall(r"`(\w+)`", begin[1])
    assert names
    assert [name for name in names if not (PIPELINE / room / f"{name}.py").exists()] == []


@every_room
def test_a_room_is_small_enough_to_hold_in_mind(room: str) -> None:
    assert len(list((PIPELINE / room).glob("*.py"))) <= MOST_FILES


def test_no_module_stands_beside_a_folder_of_its_name() -> None:
    """`x.py` beside `x/` is one import name for two things: Python takes the folder, a reader opens the file."""
    modules = [file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")]
    assert [file.relative_to(ROOT).as_posix() for file in modules if file.with_suffix("").is_dir()] == []


def test_every_folder_with_modules_is_a_listed_package() -> None:
    """A folder that is not listed is missing from the wheel without a warning; the editable install still finds it."""
    folders = {file.parent for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")}
    packages = set()
    for folder in folders:
        top, *rest = folder.relative_to(ROOT).parts
        packages.add(".".join([PACKAGES[top], *rest]))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(packages)
    assert settings["package-dir"] == {package: folder for folder, package in PACKAGES.items()}


def test_no_import_is_relative() -> None:
    """A relative import hides which room it enters."""
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in PACKAGES
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    "code",
    [
        "import teachonce.training.trainer",
        "from teachonce import training",
        "from teachonce.training import trainer",
        "from teachonce.training.trainer import Trainer",
        "def late():\n    from teachonce.training.trainer import Trainer",
        "if TYPE_CHECKING:\n    from teachonce.training.trainer import Trainer",
    ],
)
def test_the_rule_sees_every_form_of_import(code: str) -> None:
    assert list(rooms_imported(code)) == ["training"]
