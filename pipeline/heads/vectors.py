"""Heads that are class vectors: with them a classifier is a matrix still.

Shapes: K classes, E embedding, R classes that the head knows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachonce.heads.kinds import HeadMeta
from teachonce.heads.verbs import Head


class LinearHead(Head):
    """A residual for each known class: w' = norm(w + weight r) (Task Residual, arXiv 2211.10277, equation 5).

    There the sum is not normalised; here it is, so that the result is a class vector like any other.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.residual = nn.Parameter(torch.zeros(len(meta.names), meta.width))

    def classes(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        """Unit class vectors with the residuals; of unknown classes exactly what came in."""
        return self._with_residuals(features_KE, known_K)

    def training_logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> list[Tensor]:
        """Those of the class vectors: the handicap is for classifying, and a loss would only work against it."""
        return [scale * images_BE @ self.classes(features_KE, known_K).T]

    @property
    def has_offsets(self) -> bool:
        """Where there is a handicap."""
        return self.meta.handicap > 0

    def offsets(self, known_K: Tensor) -> Tensor:
        """Minus the handicap for known classes, [K]."""
        return torch.where(known_K >= 0, -self.meta.handicap, 0.0)

    def penalty(self) -> Tensor:
        """The mean over known classes of |r|^2."""
        return self.residual.square().sum(1).mean()

    def _with_residuals(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        with_none = torch.cat([self.residual, self.residual.new_zeros(1, self.meta.width)])
        moved = nn.functional.normalize(features_KE + self.meta.weight * with_none[known_K], dim=-1)
        return torch.where((known_K >= 0)[:, None], moved, features_KE)


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
        return behind_matrix(features_KE, self.meta.weight * self.matrix)

    def penalty(self) -> Tensor:
        """|A|^2, summed over its entries."""
        return self.matrix.square().sum()


class ProjectionLinearHead(LinearHead):
    """A matrix for all class vectors, and behind it a residual for each known class.

    w1 = norm(w + w A) for every name, w2 = norm(w1 + weight r) for known ones, which are classified by w2. A step adds
    the loss of w1 and the loss of w2 with w1 held: else residuals would explain the photos that the matrix, which other
    names need, has to learn from.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.matrix = nn.Parameter(torch.zeros(meta.width, meta.width))

    def classes(self, features_KE: Tensor, known_K: Tensor) -> Tensor:
        """Unit class vectors behind the matrix, with the residuals."""
        return self._with_residuals(behind_matrix(features_KE, self.matrix), known_K)

    def training_logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> list[Tensor]:
        """Those of the matrix alone, and those of the residuals behind it as it is."""
        projected = behind_matrix(features_KE, self.matrix)
        moved = self._with_residuals(projected.detach(), known_K)
        return [scale * images_BE @ projected.T, scale * images_BE.detach() @ moved.T]

    def penalty(self) -> Tensor:
        """|A|^2, summed over its entries."""
        return self.matrix.square().sum()


def behind_matrix(features_KE: Tensor, matrix_EE: Tensor) -> Tensor:
    """norm(w + w A) of each unit vector w, [K, E]."""
    return nn.functional.normalize(features_KE + features_KE @ matrix_EE, dim=-1)
