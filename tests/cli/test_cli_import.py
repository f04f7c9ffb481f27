"""The verb `import`: what it hands to its stage, and how misspelt words and bad files end. The stage is a stub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs

from teachonce.errors import FingerprintError, IntegrityError
from teachonce.stages.import_ import ImportRequest

LINE = ("import", "model.pth.tar-50", "--student", "S", "--out", "runs/coop")
Command = Callable[..., Any]


@pytest.mark.parametrize("position", ["before", "around", "after"])
def test_all_options_reach_the_stage(position: Any, teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    assert teachonce_here(*LINE, "--position", position).code == 0
    assert stubs.requests[-1] == ImportRequest(
        checkpoint=Path("model.pth.tar-50"), student="S", out=Path("runs/coop"), position=position
    )


def test_the_context_stands_before_the_name_by_default(teachonce_here: Command, stubs: stage_stubs.Stubs) -> None:
    """Where CoOp and POMP put it unless told otherwise."""
    ended = teachonce_here(*LINE, "--json")
    assert stubs.requests[-1].position == "before"
    assert ended.document["command"] == "import" and ended.document["student_proved"] is True


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [(["--postion", "after"], "--position"), (["--position", "befor"], "'before'"), (["--studnt", "S"], "--student")],
)
def test_a_misspelt_word_gets_a_suggestion(arguments: list[str], suggestion: str, teachonce_here: Command) -> None:
    ended = teachonce_here(*LINE, *arguments)
    assert ended.code == 2 and ended.out == "" and suggestion in ended.err


def test_a_misspelt_verb_gets_a_suggestion(teachonce_here: Command) -> None:
    for word in ("imprt", "import_"):
        ended = teachonce_here(word, *LINE[1:])
        assert ended.code == 2 and "'import'" in ended.err


@pytest.mark.parametrize("left_out", ["--student", "--out"])
def test_student_and_folder_are_required(left_out: str, teachonce_here: Command) -> None:
    place = LINE.index(left_out)
    ended = teachonce_here(*LINE[:place], *LINE[place + 2 :])
    assert ended.code == 2 and left_out in ended.err and "teachonce import --help" in ended.err


@pytest.mark.parametrize("problem", [IntegrityError("x holds more than tensors", "save it"), FingerprintError("other")])
def test_a_bad_file_ends_with_exit_code_four(
    problem: Exception, teachonce_here: Command, stubs: stage_stubs.Stubs
) -> None:
    stubs.problem = problem
    ended = teachonce_here(*LINE)
    assert ended.code == 4 and str(problem) in ended.err and ended.out == ""
