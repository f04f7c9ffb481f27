"""What a head does with class vectors, image features and logits.

Shapes: K classes, B images, E embedding, R classes that the head knows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from teachonce.heads.kinds import HeadMeta


class Head(nn.Module):
    """A head. By itself it changes nothing: the kinds of heads override the verbs that they need.

    Args:
        meta: what it is.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__()
        self.meta = meta

    def classes(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        """Unit class vectors with the head, [K, E].

        Args:
            features_KE: unit class vectors of the text tower.
            known_K: int64, each class's row among those that the head knows, -1 for the others.
        """
        return features_KE

    def images(self, images_BE: Tensor) -> Tensor:
        """Unit image features with the head, [B, E]."""
        return images_BE

    @property
    def has_offsets(self) -> bool:
        """Whether `offsets` are added to the logits."""
        return False

    def offsets(self, known_K: Tensor) -> Tensor:
        """What is added to the logits of each class whatever the image is, [K]; 0 for unknown ones.

        Args:
            known_K: as of `classes`.
        """
        return torch.zeros(len(known_K), device=known_K.device)

    def extra_logits(self, images_BE: Tensor, known_K: Tensor) -> Tensor | None:
        """What is added to the logits, [B, K]; None where nothing is.

        Args:
            images_BE: unit image features as the tower gives them.
            known_K: as of `classes`.
        """
        return self.offsets(known_K).expand(len(images_BE), -1) if self.has_offsets else None

    def logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """The logits of images among classes, [B, K]; `scale` is the model's own."""
        logits = scale * self.images(images_BE) @ self.classes(features_KE, known_K).T
        extra = self.extra_logits(images_BE, known_K)
        return logits if extra is None else logits + extra

    def training_logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> list[Tensor]:
        """The logits whose losses a step adds up, [B, K] each; most heads learn from those that they classify by."""
        return [self.logits(features_KE, images_BE, known_K, scale)]

    def scoring_classes(self, features_KE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """Vectors of the classes that go with `scoring_images`, [K, S], S >= E.

        The logits are scale * scoring_images @ scoring_classes.T: what compares features with classes needs no other
        way for heads that add to logits. Offsets are one more entry, in units of the scale.
        """
        classes = self.classes(features_KE, known_K)
        return torch.cat([classes, self.offsets(known_K)[:, None] / scale], dim=1) if self.has_offsets else classes

    def scoring_images(self, images_BE: Tensor) -> Tensor:
        """Vectors of the images that go with `scoring_classes`, [B, S]; with offsets one more entry: 1."""
        images = self.images(images_BE)
        return torch.cat([images, images.new_ones(len(images), 1)], dim=1) if self.has_offsets else images

    def penalty(self) -> Tensor:
        """How far the head is from where it began, in the measure of its ridge penalty; 0 where it has none."""
        return torch.zeros(())

    def begin(self, seed: int) -> None:
        """Draw what begins at random; most heads have nothing of it."""

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the head, by name; `HeadMeta.shapes` tells the same."""
        return dict(self.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> Head:
        """Take over kept tensors; returns itself."""
        self.load_state_dict(dict(tensors))
        return self
