"""All heads by their kinds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from teachonce.heads.adapters import BiasHead, ClipAdapterHead, TipHead
from teachonce.heads.kinds import HeadMeta
from teachonce.heads.teacher_space import TeacherSpaceHead
from teachonce.heads.vectors import LinearHead, ProjectionHead, ProjectionLinearHead
from teachonce.heads.verbs import Head

HEADS: Mapping[str, Callable[[HeadMeta], Head]] = {
    "linear": LinearHead,
    "bias": BiasHead,
    "tip-adapter": functools.partial(TipHead, trained=False),
    "tip-adapter-f": functools.partial(TipHead, trained=True),
    "clip-adapter": ClipAdapterHead,
    "projection": ProjectionHead,
    "projection+linear": ProjectionLinearHead,
    "teacher-space": TeacherSpaceHead,
}


def head_of(meta: HeadMeta) -> Head:
    """A head that is not trained yet."""
    return HEADS[meta.kind](meta)


@torch.no_grad()
def scored_images(head: Head, images_BE: Tensor) -> Tensor:
    """`scoring_images` of a kept head, where the images are, [B, S]."""
    return head.to(images_BE.device).scoring_images(images_BE)
