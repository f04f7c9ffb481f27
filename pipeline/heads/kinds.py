"""Which heads there are, and what their file says of one.

This module holds no tensors and loads nothing heavy: configs name the heads by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HeadKind = Literal[
    "none",
    "linear",
    "bias",
    "tip-adapter",
    "tip-adapter-f",
    "clip-adapter",
    "projection",
    "projection+linear",
    "teacher-space",
]
"""none: class vectors are the text tower's.
linear: a residual vector for each class with photos, w' = norm(w + weight r) (Task Residual, arXiv 2211.10277).
bias: a number for each class with photos, added to its logit.
tip-adapter: image features of the training rows with their labels, from which nothing is trained (arXiv 2207.09519).
tip-adapter-f: as tip-adapter, with features that are trained.
clip-adapter: a residual network on image features (arXiv 2110.04544).
projection: one matrix for all class vectors, w' = norm(w + weight w A), held near zero by a ridge penalty (ProLIP,
arXiv 2410.05270, there on the image tower's projection).
projection+linear: both, the residuals behind the matrix; the matrix learns as if there were none (ours).
teacher-space: image features through a matrix, beside the teacher's class vectors (PromptKD, arXiv 2403.02781)."""
Learn = Literal["together", "after"]
"""Whether a head is trained with the prompts or behind them."""
OF_CLASSES: tuple[HeadKind, ...] = ("linear", "bias", "tip-adapter", "tip-adapter-f", "projection+linear")
"""Heads that know classes one by one; the others act on all names alike."""
CACHES: tuple[HeadKind, ...] = ("tip-adapter", "tip-adapter-f")
"""Heads that hold image features of training rows."""
OF_STORE: tuple[HeadKind, ...] = ("teacher-space",)
"""Heads that hold something of every name of the store, and can say nothing of others."""
PENALTIES: Mapping[HeadKind, float] = {"projection": 0.2, "projection+linear": 0.2, "teacher-space": 0.02}
"""The ridge penalty that `auto` stands for; 0 where a head is not named."""


@dataclass(frozen=True, kw_only=True)
class HeadMeta:
    """What a head is, and which classes it knows."""

    kind: HeadKind
    width: int
    """E, of the joint embedding."""
    weight: float = 1.0
    """Between what is there without the head and what the head adds to it; without effect in the adapters."""
    names: tuple[str, ...] = ()
    """Of the R classes that the head knows one by one; names that are equal to the tokenizer are one class."""
    ids: tuple[str, ...] = ()
    """Their ids in the vocabulary of the run."""
    handicap: float = 0.0
    """Taken from the logits of the classes that the head knows, in nats, when it classifies: calibrated stacking (Chao
    et al. 2016, arXiv 1605.04253, equation 5)."""
    cached: int = 0
    """N, image features of a tip-adapter; 0 in others."""
    alpha: float = 0.0
    """tip-adapter: what a cached feature counts."""
    beta: float = 0.0
    """tip-adapter: how fast that falls with the distance."""
    hidden: int = 0
    """H, units of a clip-adapter; 0 in others."""
    ratio: float = 0.0
    """clip-adapter: the share of the network in image features."""
    teacher_width: int = 0
    """teacher-space: D, of the teacher's embedding; 0 in others."""
    teacher_scale: float = 0.0
    """teacher-space: the teacher's logit scale."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that no head has."""
        numbers = (self.weight, self.handicap, self.alpha, self.beta, self.ratio, self.teacher_scale)
        sizes = (self.width - 1, self.cached, self.hidden, self.teacher_width)
        if self.kind == "none" or min(sizes) < 0 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"no head is of kind '{self.kind}' with sizes and numbers like these")
        if len(self.names) != len(self.ids):
            raise ValueError(f"a head has {len(self.names)} names and {len(self.ids)} ids")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of such a head, each with its shape."""
        known, width = len(self.names), self.width
        cache: dict[str, tuple[int, ...]] = {"keys": (self.cached, width), "labels": (self.cached,)}
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "linear": {"residual": (known, width)},
            "bias": {"bias": (known,)},
            "tip-adapter": cache,
            "tip-adapter-f": cache,
            "clip-adapter": {"down": (self.hidden, width), "up": (width, self.hidden)},
            "projection": {"matrix": (width, width)},
            "projection+linear": {"matrix": (width, width), "residual": (known, width)},
            "teacher-space": {"matrix": (width, self.teacher_width), "vectors": (known, self.teacher_width)},
        }
        return shapes[self.kind]

    @property
    def is_class_vectors(self) -> bool:
        """Whether class vectors say all of the head, so that an exported classifier needs nothing else."""
        return self.kind in ("linear", "projection", "projection+linear")

    @property
    def is_image_features(self) -> bool:
        """Whether image features say all of the head, so that a model with open_clip's interface can have it."""
        return self.kind == "clip-adapter"

    def public(self) -> dict[str, Any]:
        """What an export says of the head beside its names, in the order of its card."""
        added = ["weight", "handicap"]
        keys = {"linear": added, "projection+linear": added, "bias": ["weight"], "projection": ["weight"]}
        keys["clip-adapter"] = ["hidden", "ratio"]
        keys["teacher-space"] = ["weight", "teacher_width", "teacher_scale"]
        return {key: getattr(self, key) for key in ("kind", *keys.get(self.kind, ["cached", "alpha", "beta"]))}
