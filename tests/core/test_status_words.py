"""One vocabulary of states: each word has a meaning, which the documentation repeats, and no module has other words."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from teachonce.cli.views.status import COLOURS, WORDS
from teachonce.core.status import CELL_WORDS, MEANINGS, State, Worker, cell_word, state_of

ROOT = Path(__file__).resolve().parents[2]
STATES = set(get_args(State))
FILES = sorted(file for folder in ("pipeline", "stages", "cli") for file in (ROOT / folder).rglob("*.py"))


def test_every_state_has_one_sentence_and_no_two_have_the_same() -> None:
    assert set(MEANINGS) == STATES and len(set(MEANINGS.values())) == len(STATES)
    assert all(re.fullmatch(r"[A-Z][^.]+\.", meaning) for meaning in MEANINGS.values())


def test_the_documentation_gives_the_same_meanings_and_words() -> None:
    text = (ROOT / "docs/ablate.md").read_text(encoding="utf-8")
    section = text.partition("## States\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| ([A-Z].*\.) \|$", section, re.MULTILINE))
    assert rows == dict(MEANINGS)
    sentences = " ".join(section.split())
    assert all(f"`{word}` for a cell that is {state}" in sentences for state, word in CELL_WORDS.items())


def test_documents_keep_the_words_that_they_had_before_there_was_one_vocabulary() -> None:
    words = {state: cell_word(state) for state in MEANINGS}
    assert (words["stopped"], words["unfinished"]) == ("interrupted", "missing")
    assert all(word == state for state, word in words.items() if state not in ("stopped", "unfinished"))


@pytest.mark.parametrize("silent", [0.0, 1e6])
@pytest.mark.parametrize("done", [True, False])
def test_a_person_is_told_of_every_state_that_status_can_find(done: bool, silent: float) -> None:
    workers = [None, *(Worker(host="h", pid=1, alive=alive) for alive in (True, False, None))]
    reachable = {state_of(worker, done, anything, silent, 1.0) for worker in workers for anything in (True, False)}
    assert reachable <= set(WORDS) and reachable <= set(COLOURS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_declares_states_of_its_own(file: Path) -> None:
    """A `Literal` with two words of the vocabulary is a vocabulary."""
    if file == ROOT / "pipeline/core/status.py":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            said = {part.value for part in ast.walk(node.slice) if isinstance(part, ast.Constant)}
            assert len(said & (STATES | set(CELL_WORDS.values()))) < 2, ast.unparse(node)
