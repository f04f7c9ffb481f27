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
from teachonce.recipe.loss_table import Loss
from teachonce.towers.packing import to_device

MOST_DRAWS = 1024
"""Names whose numbers differ by a multiple of this share a draw: one for each name of ImageNet-21K would take as long
as the rest of a step."""


@dataclass(frozen=True, eq=False)
class StepNoise:
    """The noise of one step, drawn once for all its blocks of rows."""

    of_images: Tensor | None
    """[rows of the step, E] What is added to unit image features; None: nothing."""
    of_names: Tensor | None
    """[MOST_DRAWS, E] Likewise to the unit features of names, by the name's number."""

    @classmethod
    def drawn(cls, loss: Loss, seed: int, step: int, rows: int, features: Tensor) -> StepNoise:
        """The noise that a config asks for.

        Args:
            loss: has the expected lengths of what is added.
            seed: of the run.
            step: of the run, from 0.
            rows: of the step.
            features: any features; the noise has their width and is where they are.
        """
        width = features.shape[1]

        def vectors(stream: Stream, count: int, length: float) -> Tensor | None:
            if not length:
                return None
            normal = stream.at(seed, step).standard_normal((count, width), dtype=np.float32)
            return to_device(torch.from_numpy(normal * np.float32(length / width**0.5)), features.device)

        return cls(vectors(IMAGE_NOISE, rows, loss.image_noise), vectors(NAME_NOISE, MOST_DRAWS, loss.name_noise))

    def on_images(self, features_BE: Tensor, rows: slice) -> Tensor:
        """Unit image features of some rows of the step with their noise, [B, E]."""
        return features_BE if self.of_images is None else F.normalize(features_BE + self.of_images[rows], dim=-1)

    def on_names(self, features_KE: Tensor, names_K: Tensor) -> Tensor:
        """Unit class features with their noise, [K, E]; classes of one name stay equal.

        Args:
            features_KE: unit features of the candidates.
            names_K: int64, a number of each one's name.
        """
        if self.of_names is None:
            return features_KE
        return F.normalize(features_KE + self.of_names[names_K % MOST_DRAWS], dim=-1)
