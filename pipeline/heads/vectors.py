"""Heads at work: what they make of class vectors, of image features and of logits.

Shapes: K classes, B images, E embedding, R classes that the head knows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from teachonce.heads.kinds import HeadMeta


class Head(nn.Module):
    """A head. By itself it changes nothing: the kinds of heads override the verbs that they need.

    Every trained parameter starts where the head does nothing.

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

    def extra_logits(self, images_BE: Tensor, known_K: Tensor) -> Tensor | None:
        """What is added to the logits, [B, K]; None where nothing is.

        Args:
            images_BE: unit image features as the tower gives them.
            known_K: as of `classes`.
        """
        return None

    def logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """The logits of images among classes, [B, K]; `scale` is the model's own."""
        logits = scale * self.images(images_BE) @ self.classes(features_KE, known_K).T
        extra = self.extra_logits(images_BE, known_K)
        return logits if extra is None else logits + extra

    def penalty(self) -> Tensor:
        """How far the head is from doing nothing, in the measure of its ridge penalty."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the head, by name; `HeadMeta.shapes` tells the same."""
        return dict(self.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> Head:
        """Take over kept tensors; returns itself."""
        self.load_state_dict(dict(tensors))
        return self


class LinearHead(Head):
    """A residual for each known class: w' = norm(w + weight r) (Task Residual, arXiv 2211.10277, equation 5).

    There the sum is not normalised; here it is, so that the result is a class vector like any other.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.residual = nn.Parameter(torch.zeros(len(meta.names), meta.width))

    def classes(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        """Unit class vectors with the residuals; of unknown classes exactly what came in."""
        with_none = torch.cat([self.residual, self.residual.new_zeros(1, self.meta.width)])
        moved = nn.functional.normalize(features_KE + self.meta.weight * with_none[known_K], dim=-1)
        return torch.where((known_K >= 0)[:, None], moved, features_KE)

    def penalty(self) -> Tensor:
        """The mean over known classes of |r|^2."""
        return self.residual.square().sum(1).mean()


class ProjectionHead(Head):
    """One matrix for all class vectors: w' = norm(w + weight w A) (ProLIP, arXiv 2410.05270).

    ProLIP trains the image tower's last projection near its start; here the same is done behind the text tower, whose
    vectors every name has.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.matrix = nn.Parameter(torch.zeros(meta.width, meta.width))

    def classes(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        """Unit class vectors behind the matrix."""
        return nn.functional.normalize(features_KE + self.meta.weight * features_KE @ self.matrix, dim=-1)

    def penalty(self) -> Tensor:
        """|A|^2, summed over its entries."""
        return self.matrix.square().sum()


HEADS: Mapping[str, type[Head]] = {"linear": LinearHead, "projection": ProjectionHead}


def head_of(meta: HeadMeta) -> Head:
    """A head that does nothing yet."""
    return HEADS[meta.kind](meta)
