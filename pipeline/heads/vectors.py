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
