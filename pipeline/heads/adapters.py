"""Heads on images and on logits: no class vectors stand for them.

Shapes: K classes, B images, N cached rows, E embedding, H hidden units, R classes that the head knows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from teachonce.heads.kinds import HeadMeta
from teachonce.heads.verbs import Head


class BiasHead(Head):
    """A number for each known class, added to its logit: what a prior is to the labels that were trained on."""

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.bias = nn.Parameter(torch.zeros(len(meta.names)))

    @property
    def has_offsets(self) -> bool:
        """They are all that the head is."""
        return True

    def offsets(self, known_K: Tensor) -> Tensor:
        """The numbers of the classes, [K]; 0 for unknown ones."""
        return self.meta.weight * torch.cat([self.bias, self.bias.new_zeros(1)])[known_K]

    def penalty(self) -> Tensor:
        """The mean of the squares."""
        return self.bias.square().mean()


class TipHead(Head):
    """Cached image features with their labels (Tip-Adapter, arXiv 2207.09519, equations 3 to 5).

    The logits gain alpha exp(-beta (1 - x k)) for each cached k with the class's label. With `trained` the cached
    features move (Tip-Adapter-F), else nothing does. There is no head before `fill` or `load`.

    Args:
        meta: what it is.
        trained: whether the cached features are trained.
    """

    def __init__(self, meta: HeadMeta, trained: bool) -> None:
        super().__init__(meta)
        self.register_buffer("start", torch.zeros(meta.cached, meta.width), persistent=False)
        self.register_buffer("labels", torch.full((meta.cached,), -1), persistent=False)
        self.move: nn.Parameter | None = None
        if trained:
            self.move = nn.Parameter(torch.zeros(meta.cached, meta.width))

    @torch.no_grad()
    def fill(self, images_NE: Tensor, labels_N: Tensor) -> None:
        """Put features into the cache, with their rows among the known classes."""
        self.get_buffer("start").copy_(images_NE)
        self.get_buffer("labels").copy_(labels_N)

    @property
    def keys(self) -> Tensor:
        """The cached features as they are now, [N, E]."""
        start = self.get_buffer("start")
        return start if self.move is None else start + self.move

    def extra_logits(self, images_BE: Tensor, known_K: Tensor) -> Tensor:
        """What the cache says for each class, [B, K]; 0 for unknown ones."""
        of_known = self.meta.alpha * self._votes(images_BE)
        return torch.cat([of_known, of_known.new_zeros(len(of_known), 1)], dim=1)[:, known_K]

    def scoring_classes(self, features_KE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """R more entries: alpha at the class's own, in units of the scale."""
        one_hot = torch.eye(len(self.meta.names) + 1, device=features_KE.device)[known_K][:, :-1]
        return torch.cat([features_KE, self.meta.alpha / scale * one_hot], dim=1)

    def scoring_images(self, images_BE: Tensor) -> Tensor:
        """R more entries: what the cache says for each known class."""
        return torch.cat([images_BE, self._votes(images_BE)], dim=1)

    def penalty(self) -> Tensor:
        """The mean over cached features of how far they moved, squared."""
        return torch.zeros(()) if self.move is None else self.move.square().sum(1).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The features as they are, and their labels as numbers of a float file."""
        return {"keys": self.keys.detach(), "labels": self.get_buffer("labels").float()}

    def load(self, tensors: Mapping[str, Tensor]) -> Head:
        """Take over kept features; returns itself."""
        self.fill(tensors["keys"], tensors["labels"].long())
        return self

    def _votes(self, images_BE: Tensor) -> Tensor:
        near = torch.exp(-self.meta.beta * (1 - images_BE @ self.keys.T))
        classes = torch.arange(len(self.meta.names), device=near.device)
        return near @ (self.get_buffer("labels")[:, None] == classes).to(near.dtype)


class ClipAdapterHead(Head):
    """A residual network on image features: x' = norm(r A(x) + (1 - r) x) (CLIP-Adapter, arXiv 2110.04544).

    A is two layers without bias, each with a ReLU behind it, as in the paper's code.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.down = nn.Parameter(torch.zeros(meta.hidden, meta.width))
        self.up = nn.Parameter(torch.zeros(meta.width, meta.hidden))

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """Uniform within 1 / sqrt(inputs), as PyTorch begins a linear layer; zeros would never move behind a ReLU."""
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        for layer in (self.down, self.up):
            layer.copy_((2 * torch.rand(layer.shape, generator=generator) - 1) / layer.shape[1] ** 0.5)

    def images(self, images_BE: Tensor) -> Tensor:
        """Unit image features behind the network."""
        adapted = ((images_BE @ self.down.T).relu() @ self.up.T).relu()
        ratio = self.meta.ratio
        return nn.functional.normalize(ratio * adapted + (1 - ratio) * images_BE, dim=-1)
