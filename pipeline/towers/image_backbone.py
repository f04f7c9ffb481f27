"""What `ImageTower` needs of a frozen vision transformer: its tokens, its blocks taken apart, and its pooling.

An implementation says how one library spells these parts (`image_open_clip`, `image_timm`). It knows no slots: the
tower decides which states a block's letters are made of, and which tokens see which.

Shapes: B images, N tokens of the image (P of them, class token and registers, in front of the patches), T tokens of any
kind, R of the image's tokens that go on, D width, H heads, d size of a head, E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.towers.structures import Letter

PLACE: dict[Letter, int] = {"query": 0, "key": 1, "value": 2}  # thirds of a block's joint projection


class Backbone(ABC):
    """The parts of one frozen vision transformer, which refer to the model's own modules and copy no weights."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[Any, ...]:
        """The L blocks."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """A weight, whose device and type are the tower's."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """P, the number of tokens in front of the patches."""

    @property
    @abstractmethod
    def pooled(self) -> slice:
        """The tokens of the image that pooling reads."""

    @abstractmethod
    def tokens(self, pixels: Tensor) -> Tensor:
        """Compute the image's tokens as they enter the first block, [B, N, D]."""

    @abstractmethod
    def norm(self, block: Any, x_BTD: Tensor) -> Tensor:
        """Normalise states as the block does before attention; the states themselves where it does not."""

    @abstractmethod
    def project(self, block: Any, letter: Letter, normed_BTD: Tensor) -> Tensor:
        """Compute query, key or value without position, split into heads, [B, H, T, d]."""

    def place(self, x_BHRd: Tensor, rows: slice) -> Tensor:
        """Give queries or keys of the image's tokens `rows` their position, where attention has positions."""
        return x_BHRd

    @abstractmethod
    def finish(self, block: Any, x_BTD: Tensor, mixed_BHTd: Tensor) -> Tensor:
        """Compute what the block makes of its input and of mixed values, [B, T, D]."""

    @abstractmethod
    def pool(self, x_BRD: Tensor) -> Tensor:
        """Map the pooled tokens after the last block to the joint embedding, [B, E], not normalised."""


def third(weight: Tensor, letter: Letter) -> Tensor:
    """Return the rows of a joint projection's weight or bias that make one letter."""
    rows = len(weight) // 3
    return weight[PLACE[letter] * rows : (PLACE[letter] + 1) * rows]


def linear_heads(x_BTD: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Apply a linear map and split its outcome into heads, [B, H, T, d]."""
    return split_heads(F.linear(x_BTD, weight, bias), heads)


def split_heads(x_BTA: Tensor, heads: int) -> Tensor:
    """Split the last axis into heads, [B, H, T, d]."""
    return x_BTA.view(*x_BTA.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x_BHTd: Tensor) -> Tensor:
    """Undo `split_heads`, [B, T, H d]."""
    return x_BHTd.transpose(1, 2).flatten(2)


def low_precision(visual: Any) -> str | None:
    """Say which low precision the weights have; None where they have none."""
    for parameter in visual.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            return f"weights in {parameter.dtype}; load the model in float32 and use autocast"
    return None
