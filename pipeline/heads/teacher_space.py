"""A head that classifies in the teacher's space: image features through a matrix, beside the teacher's class vectors.

PromptKD (arXiv 2403.02781, section 3.3) lets its student's image features through a trained projection into the
teacher's space and compares them with the teacher's class vectors, which are stored once. There the projection has two
layers and begins at random, and it forgets names without photos. Here it is one matrix that begins as the ridge
regression of the teacher's image embeddings on the student's image features, its changes are held by a penalty, and
its logits may be mixed with the student's own: so names without photos are held.

Shapes: K classes, B images, N training rows, E the student's embedding, D the teacher's, R classes of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from teachonce.heads.kinds import HeadMeta
from teachonce.heads.verbs import Head

RIDGE = 0.01
"""Of the regression, in units of the mean eigenvalue of the image features' second moments."""


class TeacherSpaceHead(Head):
    """logits = (1 - w) s x f + w s_T norm(x A) t, with the teacher's scale s_T and class vectors t.

    w is `meta.weight`; at 1 the student's text side takes no part. There is no head before `fill` or `load`.

    Args:
        meta: what it is.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        known, width = len(meta.names), meta.teacher_width
        self.register_buffer("vectors", torch.zeros(known, width), persistent=False)
        self.register_buffer("start", torch.zeros(meta.width, width), persistent=False)
        self.move = nn.Parameter(torch.zeros(meta.width, width))

    @torch.no_grad()
    def fill(self, vectors_RD: Tensor, start_ED: Tensor) -> None:
        """Take over the teacher's class vectors and the matrix that is there before the first step."""
        self.get_buffer("vectors").copy_(vectors_RD)
        self.get_buffer("start").copy_(start_ED)

    def projected(self, images_BE: Tensor) -> Tensor:
        """Unit image features in the teacher's space, [B, D]."""
        return nn.functional.normalize(images_BE @ (self.get_buffer("start") + self.move), dim=-1)

    def logits(self, features_KE: Tensor, images_BE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """The mixture's logits, [B, K]. All classes must be known."""
        return scale * self.scoring_images(images_BE) @ self.scoring_classes(features_KE, known_K, scale).T

    def scoring_classes(self, features_KE: Tensor, known_K: Tensor, scale: float) -> Tensor:
        """The student's class vector and the teacher's, each with its share of the logits, [K, E + D]."""
        share, ours = self.meta.weight, self.meta.teacher_scale / scale
        vectors_KD = self.get_buffer("vectors")[known_K]
        return torch.cat([(1 - share) * features_KE, share * ours * vectors_KD], dim=1)

    def scoring_images(self, images_BE: Tensor) -> Tensor:
        """Image features as they are and in the teacher's space, [B, E + D]."""
        return torch.cat([images_BE, self.projected(images_BE)], dim=1)

    def penalty(self) -> Tensor:
        """|A - start|^2, summed over its entries."""
        return self.move.square().sum()

    def tensors(self) -> dict[str, Tensor]:
        """The matrix as it is, and the teacher's class vectors."""
        return {"matrix": (self.get_buffer("start") + self.move).detach(), "vectors": self.get_buffer("vectors")}

    def load(self, tensors: Mapping[str, Tensor]) -> Head:
        """Take over a kept head; returns itself."""
        self.fill(tensors["vectors"], tensors["matrix"])
        return self


def regression(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The ridge regression of the teacher's image embeddings on the student's image features, [E, D] float32.

    argmin_A mean |x A - e|^2 + lambda |A|^2, in float64; lambda is `RIDGE` times the mean eigenvalue of mean x x'.

    Args:
        pairs: image features [n, E] and embeddings [n, D] of the same rows, block by block.
    """
    moments_EE, products_ED = None, None
    for images, embeddings in pairs:
        x, e = images.double(), embeddings.double()
        if moments_EE is None or products_ED is None:
            moments_EE, products_ED = x.T @ x, x.T @ e
        else:
            moments_EE, products_ED = moments_EE + x.T @ x, products_ED + x.T @ e
    if moments_EE is None or products_ED is None:
        raise ValueError("a regression needs rows")
    width = len(moments_EE)
    ridge = RIDGE * moments_EE.trace() / width * torch.eye(width, dtype=torch.float64, device=moments_EE.device)
    matrix: Tensor = torch.linalg.solve(moments_EE + ridge, products_ED)
    return matrix.float()
