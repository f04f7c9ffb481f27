"""What a run needs of a store, key by key, and what a store lacks of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import Holdings, Requirements, requirements

HELD = Holdings(views=2, top_k=4, temperatures=(1.0, 2.0), embeddings=True)
DEFAULT = Requirements(
    views=1,
    hard_labels=True,
    teacher=True,
    embeddings=False,
    temperature=1.0,
    soft_classes=1,
    sampled_top=0,
    features=True,
    images=False,
)
WITHOUT_SOFT: dict[str, Any] = {"teacher": False, "temperature": None, "soft_classes": 0}


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({}, {}),
        ({"supervision": "hard", "targets": "embedding", "tail": "renormalise", "temperature": 2.0}, WITHOUT_SOFT),
        ({"supervision": "soft"}, {"hard_labels": False}),
        ({"targets": "embedding", "temperature": 9.0}, {"embeddings": True, "temperature": None, "soft_classes": 0}),
        ({"tail": "renormalise"}, {"temperature": None, "soft_classes": 2}),
        ({"temperature": 2.0}, {"temperature": 2.0}),
        ({"temperature": 2.0, "teacher_temperature": 4.0}, {"temperature": 4.0}),
        ({"candidates": "sampled", "sampled_top": 5}, {"sampled_top": 5}),
        ({"candidates": "all-sampled", "sampled_top": 5}, {}),
        ({"views_per_step": 3}, {"views": 3}),
        ({"tower": "both"}, {"features": False, "images": True}),
        ({"tower": "image"}, {"features": False, "images": True}),
        ({"tower": "both", "prograd": True}, {"images": True}),
        ({"tower": "image", "consistency_weight": 1.0}, {"images": True}),
    ],
)
def test_a_run_needs_what_its_config_reads_and_nothing_else(given: dict[str, Any], changes: dict[str, Any]) -> None:
    assert requirements(TrainConfig.of(**given)) == dataclasses.replace(DEFAULT, **changes)


@pytest.mark.parametrize(
    ("given", "held", "lacks"),
    [
        ({"views_per_step": 2, "temperature": 2.0}, {}, []),
        ({"views_per_step": 3}, {}, ["views"]),
        ({}, {"top_k": 0, "temperatures": ()}, ["teacher", "temperature"]),
        ({"supervision": "hard"}, {"top_k": 0, "temperatures": ()}, []),
        ({"targets": "embedding"}, {"embeddings": False}, ["embeddings"]),
        ({"targets": "embedding", "temperature": 9.0}, {}, []),
        ({"temperature": 3.0}, {}, ["temperature"]),
        ({"temperature": 3.0, "tail": "renormalise"}, {}, []),
        ({"tail": "renormalise"}, {"top_k": 1}, ["soft_classes"]),
        ({"tail": "ghost"}, {"top_k": 1}, []),
        ({"candidates": "sampled", "sampled_top": 4}, {}, []),
        ({"candidates": "sampled", "sampled_top": 5}, {}, ["sampled_top"]),
        ({"candidates": "sampled", "supervision": "hard"}, {"top_k": 0, "temperatures": ()}, []),
    ],
)
def test_a_store_lacks_what_is_needed_and_not_held(
    given: dict[str, Any], held: dict[str, Any], lacks: list[str]
) -> None:
    """In the order in which it is told; a store without a teacher has no best classes, which stops nobody."""
    lacking = requirements(TrainConfig.of(**given)).lacking(dataclasses.replace(HELD, **held))
    assert list(lacking) == lacks
