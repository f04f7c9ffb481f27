"""A temperature for each row, so that its soft label has a stated entropy.

One temperature for all rows leaves some soft labels sharp and others flat. CIST (arXiv 2605.20357) gives each sample a
temperature of its own and keeps the ratio of its largest logit to it, which stands for the entropy there. Cosines of a
CLIP share an offset that softmax ignores and that ratio does not, so the entropy itself is solved for here.

Shapes: B rows, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANGE = 30.0
"""A temperature lies within this factor of the teacher's own, on either side."""
MOST_STEPS = 60
CLOSE = 1e-9  # nats; the search of a row ends when its entropy is so near
BISECT_EVERY = 4  # every so many steps the interval is halved, so that Newton's steps cannot creep


@dataclass(frozen=True)
class RowTemperatures:
    """The temperature of each row, and the rows that cannot have the entropy within `RANGE`."""

    values_B: Tensor
    """Float64."""
    too_flat_B: Tensor
    """Whether even the lowest temperature leaves more entropy: the best classes tie, or nearly so."""
    too_sharp_B: Tensor
    """Whether even the highest temperature leaves less entropy."""


@torch.inference_mode()
def row_temperatures(logits_BC: Tensor, entropy: float) -> RowTemperatures:
    """Find the temperature at which softmax(logits / temperature) of each row has the entropy.

    With a = 1/temperature, the entropy is ln Z(a) - a E[z], which falls in ln a with the slope -a^2 Var[z]. So there is
    one solution at most; Newton's method finds it in an interval that always holds it, in float64. A row without a
    solution in the range gets the end of the range that is nearer.

    Args:
        logits_BC: at the teacher's own temperature, finite.
        entropy: in nats, above 0.
    """
    values = logits_BC.double()
    values = values - values.amax(dim=1, keepdim=True)
    edge = math.log(RANGE)
    low, high = torch.full_like(values[:, 0], -edge), torch.full_like(values[:, 0], edge)  # ln a
    too_sharp = _entropy(values, low)[0] < entropy
    too_flat = _entropy(values, high)[0] > entropy
    at = torch.zeros_like(low)
    for step in range(1, MOST_STEPS + 1):
        here, slope = _entropy(values, at)
        off = here - entropy
        low, high = torch.where(off > 0, at, low), torch.where(off > 0, high, at)
        if bool(((off.abs() < CLOSE) | too_flat | too_sharp).all()):
            break
        newton, middle = at - off / slope, (low + high) / 2
        outside = ~((newton > low) & (newton < high))
        moved = middle if step % BISECT_EVERY == 0 else torch.where(outside, middle, newton)
        at = torch.where(off.abs() < CLOSE, at, moved)
    at = torch.where(too_flat, edge, torch.where(too_sharp, -edge, at))
    return RowTemperatures(torch.exp(-at), too_flat, too_sharp)


def _entropy(values_BC: Tensor, log_a_B: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy of softmax(a * values) in nats, and its derivative by ln a; the values' maximum is 0."""
    scaled = log_a_B.exp()[:, None] * values_BC
    weights = scaled.exp()
    total = weights.sum(dim=1)
    mean = (weights * scaled).sum(dim=1) / total
    spread = (weights * scaled.square()).sum(dim=1) / total - mean.square()
    return total.log() - mean, -spread
