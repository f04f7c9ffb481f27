"""What was asked of prompts is in their description, and an export says what others need to know of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from teachonce.models.prompts import PromptMeta, Prompts
from teachonce.towers.slots import SlotPrompts

CLIP: Any = SimpleNamespace(spec="local-dir:student", digest="d" * 64, behaviour={"tokenizer": "t"})
TEXT_TOWER: Any = SimpleNamespace(width=6, layers=3)
IMAGE_TOWER: Any = SimpleNamespace(width=8, layers=2)
TEXT = SlotPrompts(torch.zeros(5, 6))
IMAGE = SlotPrompts(torch.zeros(7, 8), gate=torch.zeros(2))
ASKED = {"structure": "shared", "context": "art of a", "init": "words", "position": "after", "depth": 1}


def meta(tower: str) -> PromptMeta:
    """The description of prompts in one tower or both, asked for with keys for both."""
    text, image = (TEXT if tower != "image" else None), (IMAGE if tower != "text" else None)
    asked = Prompts(**{"tower": tower, "image_depth": 2, **ASKED})  # type: ignore[arg-type]
    return PromptMeta.of(asked, CLIP, ".", TEXT_TOWER, text, IMAGE_TOWER if image else None, image)


@pytest.mark.parametrize("tower", ["text", "image", "both"])
def test_a_description_holds_what_was_asked_and_the_sizes_of_what_was_made(tower: str) -> None:
    described = dataclasses.asdict(meta(tower))
    assert {key: described[key] for key in ASKED} == ASKED and described["tower"] == tower
    text = [described[key] for key in ("slots", "width", "layers")]
    assert text == ([0, 0, 0] if tower == "image" else [5, 6, 3])
    image = [described[f"image_{key}"] for key in ("slots", "depth", "width", "layers", "gate")]
    assert image == ([0, 0, 0, 0, False] if tower == "text" else [7, 2, 8, 2, True])
    student = tuple(described[f"student{part}"] for part in ("", "_digest", "_behaviour"))
    assert student == (CLIP.spec, CLIP.digest, CLIP.behaviour)


def test_an_export_says_everything_of_prompts_but_their_student_and_its_sizes() -> None:
    """A new property of prompts is either told or on this list."""
    of_the_student = {
        "student",
        "student_digest",
        "student_behaviour",
        "width",
        "layers",
        "image_width",
        "image_layers",
    }
    assert dataclasses.asdict(meta("both")).keys() - meta("both").public().keys() == of_the_student | {
        "version",
        "head",
    }


@pytest.mark.parametrize(("tower", "absent"), [("text", "image_"), ("image", ("slots", "depth", "position"))])
def test_an_export_says_nothing_of_a_tower_without_prompts(tower: str, absent: str | tuple[str, ...]) -> None:
    assert [key for key in meta(tower).public() if key.startswith(absent)] == []


@pytest.mark.parametrize("tower", ["text", "image", "both"])
def test_the_tensors_of_a_description_are_those_of_the_prompts(tower: str) -> None:
    made = {"text": TEXT, "image": IMAGE}
    towers = made if tower == "both" else {tower: made[tower]}
    expected = {f"{name}.{key}": tuple(x.shape) for name, p in towers.items() for key, x in p.tensors().items()}
    assert meta(tower).shapes() == expected
