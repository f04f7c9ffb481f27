"""docs/architecture.md is true: every file, folder and name on it is in the tree, and every room has its line.

It reads the tree as text.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOP = "pipeline|stages|cli|tests|configs|data_manifests|docs|benchmarks"
PATHS = sorted(set(re.findall(rf"`((?:{TOP})/[\w/.-]*)`", PAGE)))
NAMED = sorted(set(re.findall(rf"`((?:{TOP})/[\w/.-]*\.py)` `(\w+)`", PAGE)))
HOLES = {"stages/VERB/", "cli/commands/VERB.py"}  # a reader puts a verb in


def names_in(file: Path) -> set[str]:
    """Functions, classes and constants of a module, and the methods of its classes; names that it imports too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {
        alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
    }


def test_the_page_names_files() -> None:
    assert len(PATHS) > 40 and len(NAMED) > 20, "the other tests here would pass on nothing"


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_the_page_is_in_the_tree(path: str) -> None:
    assert path in HOLES or (ROOT / path).exists()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_name_on_the_page_is_in_its_file(path: str, name: str) -> None:
    assert name in names_in(ROOT / path)


def test_every_room_has_its_line_in_the_right_order() -> None:
    rooms = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    order = (ROOT / "tests" / "packaging" / "test_packaging_rooms.py").read_text(encoding="utf-8")
    listed = re.search(r"^ORDER = \((.*?)\)$", order, re.MULTILINE | re.DOTALL)
    assert listed and rooms == re.findall(r'"(\w+)"', listed[1])
