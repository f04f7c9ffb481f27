"""Words that a parser can check: variables, parameters and functions name the thing.

This file reads the checkout as text and imports none of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pipeline", "stages", "cli", "tests", "benchmarks", "docs")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

EMPTY_WORDS = frozenset({"found", "told", "own", "about", "got", "it", "thing", "stuff"})


def empty_words(source: str) -> list[tuple[int, str]]:
    """Return line and word of each parameter, variable and function that is called by an empty word.

    Fields of classes keep their names, since files and public objects are made of them.
    """
    tree = ast.parse(source)
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    return sorted(set(_named(tree, fields)))


def _named(tree: ast.Module, fields: set[int]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg in EMPTY_WORDS:
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in EMPTY_WORDS:
            yield node.lineno, node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield from [(node.lineno, node.id)] if node.id in EMPTY_WORDS else []


def place_of(file: Path) -> str:
    """Return the path of a file below the checkout."""
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=place_of)
def test_variables_parameters_and_functions_name_the_thing(file: Path) -> None:
    """A reader learns nothing from a variable called `found`: a name says what was found."""
    assert empty_words(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(found): ...", ["found"]),
        ("def told(): ...", ["told"]),
        ("def f(*, own=1): ...", ["own"]),
        ("def f():\n    told = 1", ["told"]),
        ("for about in (): ...", ["about"]),
        ("if (found := 1): ...", ["found"]),
        ("with a as found: ...", ["found"]),
        ("x = [own for own in ()]", ["own"]),
        ("f = lambda about: 0", ["about"]),
        ("found, other = 1, 2", ["found"]),
        ("class A:\n    about: str", []),
        ("class A:\n    def f(self):\n        about: str = ''", ["about"]),
        ("f(found=1)", []),
        ("a.found = 1", []),
        ("candidates = 1", []),
    ],
)
def test_an_empty_word_is_seen_wherever_it_is_bound(source: str, words: list[str]) -> None:
    """The check itself would otherwise pass by seeing nothing."""
    assert [word for _, word in empty_words(source)] == words
