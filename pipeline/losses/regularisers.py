"""What keeps classes that training never sees: anchors, interpolation with the frozen student, projected gradients.

This module knows neither prompts nor rows. Self-consistency needs no function here: it is `targets.embedding_columns`
with the frozen student's features, and `losses.dense_rows`.

Shapes: K candidates, C names, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor(features: Tensor, frozen: Tensor, stands_for: Tensor, vocabulary: int) -> Tensor:
    """The mean over the vocabulary of |f - f0|^2 (KgCoOp, arXiv 2303.13283), without bias when candidates are sampled.

    Args:
        features: [K, E] unit, of the candidates with the trained prompts.
        frozen: [K, E] unit, with the hand-written context.
        stands_for: [K], as of `Candidates`: ln of how many classes each stands for.
        vocabulary: V.

    Returns:
        A scalar, between 0 and 4 when all classes are candidates.
    """
    distance = (features.float() - frozen.float()).square().sum(1)
    return (stands_for.exp() * distance).sum() / vocabulary


def absolute_anchor(features: Tensor, frozen: Tensor, stands_for: Tensor, vocabulary: int) -> Tensor:
    """The mean over the vocabulary and the dimensions of |f - f0| (PromptSRC, arXiv 2307.06948, as its code has it).

    The paper's L_SCL-text (equation 2) is the sum over the E dimensions, E times as much; the weight of 25 that its
    settings give belongs to the mean. Arguments as of `anchor`.
    """
    distance = (features.float() - frozen.float()).abs().mean(1)
    return (stands_for.exp() * distance).sum() / vocabulary


def project(gradient: Sequence[Tensor], general: Sequence[Tensor]) -> list[Tensor]:
    """The gradient without what opposes the general one (ProGrad, arXiv 2205.14865, equation 5 with lambda = 1).

    g when <g, h> >= 0, else g - <g, h> / |h|^2 h, over all parameters as one vector.

    Args:
        gradient: of the task's loss, one tensor a parameter.
        general: of the divergence from the frozen student, likewise; zero changes nothing.
    """
    inner = torch.stack([(g.double() * h.double()).sum() for g, h in zip(gradient, general, strict=True)]).sum()
    size = torch.stack([h.double().square().sum() for h in general]).sum()
    against = torch.where((inner < 0) & (size > 0), inner / size.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return [g - against.to(g.dtype) * h for g, h in zip(gradient, general, strict=True)]
