"""Noise on the features of a step: what is trained must hold around what it saw, not only at its points.

Noise on inputs is a smoothness penalty (Bishop 1995, "Training with noise is equivalent to Tikhonov regularization");
on CLIP's features it has served where texts stood for images (CapDec, arXiv 2211.00575). The noise of a step is a
function of the run's seed and the step, on every device the same.

Shapes: B rows of a step, K candidates, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.core.streams import IMAGE_NOISE, NAME_NOISE, Stream
from teachonce.towers.packing import to_device

MOST_DRAWS = 1024
"""Names whose numbers differ by a multiple of this share a draw: one for each name of ImageNet-21K would take as long
as the rest of a step."""


@dataclass(frozen=True)
class StepNoise:
    """The noise of one step."""

    images: float
    """Expected length of what is added to a unit image feature; 0: nothing."""
    names: float
    """Likewise of the unit feature of a name."""
    seed: int
    """Of the run."""
    step: int
    """Of the run, from 0."""

    def on_images(self, features_BE: Tensor, rows: slice, total: int) -> Tensor:
        """Unit image features of some rows with their noise, [B, E]: the same however a step is cut into blocks.

        Args:
            features_BE: unit features of `rows`.
            rows: of the step.
            total: rows of the step.
        """
        if not self.images:
            return features_BE
        drawn = self._drawn(IMAGE_NOISE, total, features_BE.shape[1], features_BE.device)
        return _moved(features_BE, drawn[rows], self.images)

    def on_names(self, features_KE: Tensor, names_K: Tensor) -> Tensor:
        """Unit class features with their noise, [K, E]; classes of one name stay equal.

        Args:
            features_KE: unit features of the candidates.
            names_K: int64, a number of each one's name.
        """
        if not self.names:
            return features_KE
        drawn = self._drawn(NAME_NOISE, MOST_DRAWS, features_KE.shape[1], features_KE.device)
        return _moved(features_KE, drawn[names_K % MOST_DRAWS], self.names)

    def _drawn(self, stream: Stream, count: int, width: int, device: torch.device) -> Tensor:
        drawn = stream.at(self.seed, self.step).standard_normal((count, width), dtype=np.float32)
        return to_device(torch.from_numpy(drawn), device)


def _moved(features: Tensor, noise: Tensor, length: float) -> Tensor:
    """norm(f + length * noise / sqrt(E)), for standard normal noise."""
    return F.normalize(features + noise * (length / noise.shape[1] ** 0.5), dim=-1)
