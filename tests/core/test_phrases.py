"""Sentences that name options: plain words for everyone, other words for whoever knows how an option is given."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from teachonce import errors
from teachonce.cli.words import spelled
from teachonce.phrases import (
    Option,
    Phrase,
    another,
    command_line,
    from_json,
    option,
    options_of,
    phrase,
    respelled,
    setting,
    to_json,
)
from teachonce.towers.tokens import NameTooLong


@pytest.mark.parametrize(
    ("said", "plain", "at_the_command_line"),
    [
        (option("top_k") + f" {5} is too many", "`top_k` 5 is too many", "--top-k 5 is too many"),
        ("add " + setting("tail", "none"), "add `tail=none`", "add --set tail=none"),
        (phrase("{another out}, or wait"), "give another `out`, or wait", "give another --out, or wait"),
        (phrase("{precision=fp32} and {{}}"), "`precision=fp32` and {}", "--set precision=fp32 and {}"),
        (Phrase(" or ").join([option("root"), "b"]), "`root` or b", "--root or b"),
        (
            command_line("train", "a b", out="x y"),
            "teachonce train 'a b' `out` 'x y'",
            "teachonce train 'a b' --out 'x y'",
        ),
        ("no options", "no options", "no options"),
    ],
)
def test_a_phrase_reads_plainly_and_is_spelled_with_flags(said: str, plain: str, at_the_command_line: str) -> None:
    assert said == plain and f"{said}" == plain and json.loads(json.dumps(said)) == plain
    assert spelled(said) == at_the_command_line
    for same in (copy.deepcopy(said), pickle.loads(pickle.dumps(said)), from_json(to_json(said))):  # noqa: S301 - our own
        assert same == plain and spelled(same) == at_the_command_line and options_of(same) == options_of(said)


def test_some_options_can_be_respelled_and_the_others_left() -> None:
    """A grid knows `classes` as its own key and leaves `root` to the command line."""
    said = phrase("give {classes} or {root}")
    mine = respelled(said, lambda named: "`classes =`" if named.name == "classes" else named)
    assert spelled(mine) == "give `classes =` or --root"


@pytest.mark.parametrize(
    "problem",
    [
        errors.DataError("x", hint=phrase("give {root}")),
        errors.ImageChangedError("a.tar: 'k'", "l.zarr", 1, 2, "; all differ", phrase(", or {labels}")),
        NameTooLong(3, "tench", tokens=90, slots=4, room=72),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_an_error_keeps_its_facts_between_processes_and_when_it_is_reworded(problem: errors.TeachOnceError) -> None:
    """Whatever arguments its kind takes: facts, and options in its hint."""
    there = pickle.loads(pickle.dumps(problem))  # noqa: S301 - our own
    again = problem.reworded(message="cell 'a': " + problem.message)
    assert type(there) is type(again) is type(problem) and vars(there) == vars(problem)
    assert spelled(there.hint) == spelled(problem.hint) == spelled(again.hint)
    assert again.message == f"cell 'a': {problem.message}" and str(there) == problem.message
    assert {**vars(again), "message": problem.message} == vars(problem)


def test_an_option_is_told_from_the_advice_to_give_another() -> None:
    assert options_of(another("out")) == (Option("out", kind="another"),) != options_of(option("out"))
