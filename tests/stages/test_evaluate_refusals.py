"""What `evaluate` refuses tells the next step, whichever part of it found the fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from requests_of import evaluate_request
from worlds import World

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.stages.evaluate import evaluate


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))


def refusal(world: World, model: str, **change: Any) -> UsageError:
    """The error of a request that is otherwise fine."""
    given: dict[str, Any] = {"run": None, "student": model, "manifest": world.manifest(), "root": world.root}
    with pytest.raises(UsageError) as caught:
        evaluate(evaluate_request(**{**given, "threads": 1, **change}), Silent())
    return caught.value


def test_an_unknown_split_is_answered_with_those_there_are(world: World, student: str) -> None:
    """In the option's own words."""
    error = refusal(world, student, split="zzz")
    assert "has no split 'zzz'" in error.message and error.hint.startswith("`split` ") and "val" in error.hint


@pytest.mark.parametrize("template", ["so " * 40 + "{}.", "{} " + "so " * 40, "<start_of_text> a {}."])
def test_a_template_that_cannot_be_used_says_what_to_change(template: str, world: World, student: str) -> None:
    """Too long before the name, too long behind it, and with a token that ends the text."""
    assert refusal(world, student, template=template).hint


@pytest.mark.parametrize(
    "change",
    [
        {"split": "tset"},
        {"template": "none"},
        {"run": Path("gone")},
        {"root": None},
        {"manifest": "gone.toml"},
        {"student": "x"},
        {"vocabulary": "timm:x"},
        {"wise": 0.5},
    ],
)
def test_every_wrong_option_has_a_next_step(change: dict[str, Any], world: World, student: str) -> None:
    """Nobody is left with what is wrong alone."""
    assert refusal(world, student, **change).hint
