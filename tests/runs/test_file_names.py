"""Each file of a run and of a grid has its name in one place: everybody else asks `RunFolder` or `GridFolder`.

It reads the shipped tree as text and imports none of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for folder in ("pipeline", "stages", "cli") for file in (ROOT / folder).rglob("*.py"))
OWNERS = {  # name -> the module that says it
    "events.jsonl": "pipeline/runs/folder.py",
    "results.json": "pipeline/models/prompt_names.py",
    "cell.json": "pipeline/runs/folder.py",
    "failure.json": "pipeline/runs/folder.py",
    ".teachonce.lock": "pipeline/runs/folder.py",
    "grid.json": "pipeline/runs/grid_folder.py",
    "config.toml": "pipeline/models/prompt_names.py",
    "prompts.safetensors": "pipeline/models/prompt_names.py",
    "prompts.json": "pipeline/models/prompt_names.py",
}
CHECKPOINT = re.compile(r"step-.*safetensors")  # the name of a checkpoint, or a pattern of such names
FOLDERS = ("checkpoints", "evaluations", "locks", "stores", "selections", "final", "cells")


def docstrings(tree: ast.Module) -> set[ast.expr]:
    """Every string that stands as a statement: nobody opens a file by it."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def strings(code: str) -> Iterator[str]:
    """Every string of a module that is no docstring; of an f-string with `*` for what is filled in."""
    tree = ast.parse(code)
    left_out = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.value


def names_said(code: str) -> Iterator[str]:
    """The names of files of a run or grid that a module says itself; names within a sentence are for people."""
    for text in strings(code):
        last = text.rpartition("/")[2]
        if last in OWNERS and " " not in text:
            yield last
        elif CHECKPOINT.search(text) and " " not in text:
            yield "step-"


def folders_joined(code: str) -> Iterator[str]:
    """The names of folders of a run or grid that a module joins to a path itself, as in `path / "cells"`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and str(side.value).partition("/")[0] in FOLDERS:
                    yield str(side.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_only_its_owner_says_the_name_of_a_file(file: Path) -> None:
    module, code = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    owned = {name for name, owner in OWNERS.items() if owner == module}
    owned |= {"step-"} if module == "pipeline/runs/folder.py" else set()
    assert set(names_said(code)) <= owned
    assert not list(folders_joined(code))


def test_every_owner_says_the_names_that_it_owns() -> None:
    for name, owner in OWNERS.items():
        assert name in set(names_said((ROOT / owner).read_text(encoding="utf-8"))), (name, owner)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ('open(run / "events.jsonl")', ["events.jsonl"]),
        ('folder.glob("cells/*/events.jsonl")', ["events.jsonl"]),
        ('open(f"{run}/results.json")', ["results.json", "results.json"]),
        ('folder / f"step-{step:08d}.safetensors"', ["step-"]),
        ('re.compile(r"step-(\\\\d{8})\\\\.safetensors")', ["step-"]),
        ('f"{run}: events.jsonl is missing"', []),
        ('"""It writes events.jsonl."""', []),
    ],
)
def test_the_rule_sees_names_in_paths_and_not_in_sentences(code: str, names: list[str]) -> None:
    assert list(names_said(code)) == names
