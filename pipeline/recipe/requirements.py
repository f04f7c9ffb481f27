"""What a run needs of a label store and of its caller: one value that stores, selections and grids are checked against.

This module opens no store. A caller with an open store states what the store holds (`Holdings`), asks what is lacking,
and words the refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from teachonce.recipe.config import TrainConfig

Lack = Literal["views", "teacher", "embeddings", "temperature", "soft_classes", "sampled_top"]


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What a store holds for a run, as far as a selection leaves it or a derivation adds to it."""

    views: int
    """Of each sample."""
    top_k: int
    """Classes of each soft label; 0: there is no teacher."""
    temperatures: tuple[float, ...]
    """For which the mass outside the top k is stored."""
    embeddings: bool
    """Of the teacher's images."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a run reads, beyond its rows."""

    views: int
    """Of each sample, at least."""
    hard_labels: bool
    """At least one row must have a class of the vocabulary."""
    teacher: bool
    """Soft labels."""
    embeddings: bool
    """The teacher's embeddings of the images."""
    temperature: float | None
    """The temperature for which the mass outside the top k is read; None: that mass is not read."""
    soft_classes: int
    """Classes of each soft label, at least: a single class that is renormalised has probability 1 with any prompts."""
    sampled_top: int
    """Classes of each soft label that become candidates; a store without a teacher has none and lacks none."""
    features: bool
    """The bare student's image features."""
    images: bool
    """The images themselves, and so the folder that they lie in."""

    def lacking(self, held: Holdings) -> Iterator[Lack]:
        """The requirements that a store does not meet, the most important one first."""
        if self.views > held.views:
            yield "views"
        if self.teacher and not held.top_k:
            yield "teacher"
        if self.embeddings and not held.embeddings:
            yield "embeddings"
        if self.temperature is not None and self.temperature not in held.temperatures:
            yield "temperature"
        if held.top_k and self.soft_classes > held.top_k:
            yield "soft_classes"
        if held.top_k and self.sampled_top > held.top_k:
            yield "sampled_top"


def requirements(config: TrainConfig) -> Requirements:
    """What a run of this config needs."""
    loss, drawn = config.loss, config.candidates
    soft = loss.supervision != "hard"
    in_teacher_space = config.head.head == "teacher-space"
    stored_classes = soft and loss.targets == "top-k"
    renormalised = stored_classes and loss.tail == "renormalise"
    return Requirements(
        views=config.loop.views_per_step,
        hard_labels=loss.supervision != "soft",
        teacher=soft or in_teacher_space,
        embeddings=soft and loss.targets == "embedding" or in_teacher_space,
        temperature=loss.tau_teacher if stored_classes and not renormalised else None,
        soft_classes=0 if not stored_classes else 2 if renormalised else 1,
        sampled_top=drawn.sampled_top if drawn.candidates == "sampled" else 0,
        features=not config.prompts.in_images or loss.uses_frozen,
        images=config.prompts.in_images,
    )
