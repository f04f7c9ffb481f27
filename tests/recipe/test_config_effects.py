"""The list of keys without effect: one sentence a key, with the reason, and silence where nothing is to be said."""

from __future__ import annotations

import itertools
import tomllib
from importlib import resources
from typing import Any

import pytest

from teachonce.core.strict import Idle
from teachonce.errors import UsageError
from teachonce.recipe.config import TrainConfig, marks
from teachonce.recipe.config_file import train_config

IDLE = [(key, mark) for key, marks_of_key in marks().items() for mark in marks_of_key if isinstance(mark, Idle)]


def notes(**given: Any) -> list[str]:
    """What a config says of itself."""
    return TrainConfig.of(**given).without_effect()


def test_defaults_and_shipped_recipes_have_nothing_idle() -> None:
    """A recipe that sets a key that does nothing would teach the wrong thing."""
    assert notes() == []
    shipped = [file for file in resources.files("teachonce.configs").iterdir() if file.name.endswith(".toml")]
    recipes = [
        content for file in shipped if "axes" not in (content := tomllib.loads(file.read_text(encoding="utf-8")))
    ]
    assert len(recipes) >= 3
    for recipe in recipes:
        assert train_config(recipe, "x").without_effect() == []


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ({"momentum": 0.5}, ["momentum has no effect with optimizer = 'adamw'"]),
        (
            {"supervision": "hard", "tail": "to-label", "soft_weight": 0.0},
            ["soft_weight has no effect with supervision = 'hard'", "tail has no effect with supervision = 'hard'"],
        ),
        ({"init": "words"}, ["init = 'words' has no effect with tower = 'text' and length = 0"]),
        ({"steps": 5}, []),
        ({"steps": 5, "schedule": "constant"}, ["schedule has no effect with warmup_steps = 20 and steps = 5"]),
        (
            {"tower": "image", "structure": "shared", "depth": 2, "image_depth": 2},
            ["depth has no effect with tower = 'image'", "image_depth has no effect with structure = 'shared'"],
        ),
        (
            {"candidates": "sampled", "sampled_fill": 0, "correction": "none"},
            ["correction = 'none' has no effect with sampled_fill = 0"],
        ),
        ({"candidates": "sampled", "sampled_fill": 0, "correction": "log10"}, []),
        ({"init": "words", "length": 6}, []),
        ({"init": "words", "tower": "both"}, []),
        ({"init": "normal"}, []),
        ({"init": "words", "structure": "unshared-replace", "position": "after"}, []),
        ({"optimizer": "sgd", "momentum": 0.5}, []),
        ({"epochs": 2.0, "steps": 7}, ["steps has no effect with epochs = 2.0"]),
        (
            {"supervision": "hard", "temperature": 2.0, "consistency_weight": 1.0},
            ["temperature has no effect with supervision = 'hard'"],
        ),
    ],
)
def test_the_sentences_name_the_key_and_the_reason(given: dict[str, Any], sentences: list[str]) -> None:
    """In the order of the keys; the first reason of several."""
    assert notes(**given) == sentences


def test_rules_know_only_keys_that_exist() -> None:
    """A renamed key would leave a rule silent for ever."""
    for _, rule in IDLE:
        assert rule.beside and set(rule.beside) <= marks().keys()


def test_rules_hold_for_plain_values_only() -> None:
    """A rule that always holds, or never, would be no rule: every one holds for some config and not for another."""
    somewhere: set[int] = set()
    elsewhere: set[int] = set()
    towers, structures = ("text", "image", "both"), ("shared", "unshared")
    for tower, structure, on in itertools.product(towers, structures, (False, True)):
        config = TrainConfig.of(
            tower=tower,
            structure=structure,
            supervision="hard" if on else "soft",
            soft_weight=1.0 - on,
            hard_loss="gce" if on else "ce",
            targets="embedding" if on else "top-k",
            candidates="all" if on or tower == "image" else "all-sampled",
            sampled_fill=0 if on else 9,
            length=0 if on else 4,
            optimizer="adamw" if on else "sgd",
            warmup="linear" if on else "constant",
            warmup_steps=0 if on else 5,
            averaging="none" if on else "ema",
            epochs=1.0 if on else 0.0,
            held_out=0.0 if on else 0.1,
            coupled=on,
        )
        for values in (
            config.to_dict(),
            config.to_dict() | {"candidates": "sampled", "averaging": "gaussian"},
            config.to_dict() | {"warmup_steps": 9, "steps": 9, "epochs": 0.0},
            config.to_dict() | {"anchor_weight": 0.0, "warmup_epochs": 1.0},
            config.to_dict() | {"candidates": "teacher"},
            config.to_dict() | {"tower": "none", "head": "linear"},
            config.to_dict() | {"head": "tip-adapter", "head_learn": "after"},
            config.to_dict() | {"head": "tip-adapter-f"},
            config.to_dict() | {"head": "clip-adapter"},
        ):
            for number, (_, rule) in enumerate(IDLE):
                (somewhere if rule.holds(values) else elsewhere).add(number)
    assert somewhere == elsewhere == set(range(len(IDLE)))


SAMPLED = {"candidates": "sampled", "sampled_fill": 0, "sampled_top": 0}


@pytest.mark.parametrize(
    "given",
    [
        {"supervision": "soft", "soft_weight": 0.0},
        SAMPLED | {"correction": "log10"},
        SAMPLED | {"batch_size": 1},
        SAMPLED | {"batch_size": 1, "views_per_step": 4, "consistency_weight": 1.0, "correction": "none"},
        SAMPLED | {"batch_size": 1, "supervision": "soft"},
        SAMPLED | {"batch_size": 1, "anchor_weight": 1.0},
    ],
)
def test_a_run_whose_loss_is_a_constant_is_refused(given: dict[str, Any]) -> None:
    """It would take its time and return the prompts that it began with."""
    with pytest.raises(UsageError, match="nothing would be learned"):
        train_config(given, "cfg")


@pytest.mark.parametrize(
    "given",
    [
        {"supervision": "soft", "soft_weight": 0.0, "consistency_weight": 1.0},
        {"soft_weight": 0.0},
        SAMPLED,
        SAMPLED | {"correction": "none"},
        SAMPLED | {"correction": "log10", "sampled_fill": 1},
        SAMPLED | {"correction": "log10", "sampled_top": 1},
        SAMPLED | {"batch_size": 1, "sampled_fill": 1},
    ],
)
def test_what_learns_something_is_not_refused(given: dict[str, Any]) -> None:
    """Labels of a step's other samples are candidates, and self-consistency is a loss."""
    train_config(given, "cfg")
