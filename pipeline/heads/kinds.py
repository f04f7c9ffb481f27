"""Which heads there are, and what their file says of one.

This module holds no tensors and loads nothing heavy: configs name the heads by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

HeadKind = Literal["none", "linear", "projection"]
"""none: class vectors are the text tower's.
linear: a residual vector for each class with photos, w' = norm(w + weight r) (Task Residual, arXiv 2211.10277).
projection: one matrix for all class vectors, w' = norm(w + weight w A), held near zero by a ridge penalty (ProLIP,
arXiv 2410.05270, there on the image tower's projection)."""
OF_CLASSES: tuple[HeadKind, ...] = ("linear",)
"""Heads that know classes one by one; the others act on all names alike."""
PENALTIES: Mapping[HeadKind, float] = {"projection": 0.2}
"""The ridge penalty that `auto` stands for; 0 where a head is not named."""


@dataclass(frozen=True, kw_only=True)
class HeadMeta:
    """What a head is, and which classes it knows."""

    kind: HeadKind
    width: int
    """E, of the joint embedding."""
    weight: float = 1.0
    """Between class vectors and what the head adds to them."""
    names: tuple[str, ...] = ()
    """Of the R classes that the head knows one by one; names that are equal to the tokenizer are one class."""
    ids: tuple[str, ...] = ()
    """Their ids in the vocabulary of the run."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that no head has."""
        if self.width < 1 or len(self.names) != len(self.ids) or not math.isfinite(self.weight):
            raise ValueError(f"no head has width {self.width}, {len(self.names)} names and {len(self.ids)} ids")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of such a head, each with its shape."""
        known = len(self.names)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "linear": {"residual": (known, self.width)},
            "projection": {"matrix": (self.width, self.width)},
        }
        return shapes[self.kind]

    @property
    def is_class_vectors(self) -> bool:
        """Whether class vectors say all of the head, so that an exported classifier needs nothing else."""
        return self.kind in ("linear", "projection")
