"""Errors that a person meets in train, evaluate and import say what to do next, not only what is wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import zarr
from tower_reference import tiny_clip, tokenizer

from teachonce.errors import DataError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.models.learner import text_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.text_tower import TextTower


@functools.cache
def tower() -> TextTower:
    """Of 77 positions."""
    return TextTower.from_clip(tiny_clip("laion"), tokenizer())


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ({"length": 75, "init": "normal"}, "length = 75 slots: .* room for 1 to 74", "set length = 0"),
        ({"context": "very " * 80}, "takes 80 of the text tower's 77 tokens", "at most 74 tokens"),
        ({"context": "&nbsp;"}, "is empty", "set context"),
        ({"context": "a <end_of_text> of"}, "special token", "set context"),
    ],
)
def test_slots_that_cannot_be_name_the_key_to_change(given: dict[str, Any], words: str, hint: str) -> None:
    """Too many slots, too long a context, none, and one that ends the text."""
    with pytest.raises(UsageError, match=words) as caught:
        text_learner(tower(), Prompts(**given))
    assert hint in caught.value.hint


@pytest.mark.parametrize("names", [[], [""], ["<end_of_text>"], ["very " * 80]])
def test_names_that_cannot_be_have_a_next_step(names: list[str]) -> None:
    """None at all, an empty one, a token that ends the text, and one that is too long."""
    with pytest.raises(UsageError) as caught:
        tower().tokenise(names, slots=4)
    assert caught.value.hint


def test_what_is_no_label_store_says_what_makes_one(tmp_path: Path) -> None:
    """A folder that is not there, an empty one, a file, and a store of somebody else."""
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    zarr.create_group(tmp_path / "other.zarr")
    zarr.create_group(tmp_path / "foreign.zarr", attributes={"teachonce": {"format": "x"}})
    for name in ("gone", "empty", "file", "other", "foreign"):
        with pytest.raises(DataError, match="is not a label store|does not exist") as caught:
            LabelStore.open(tmp_path / f"{name}.zarr")
        assert "teachonce teach" in caught.value.hint, name
