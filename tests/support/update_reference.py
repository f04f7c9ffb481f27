"""Optimisers, and the norm of a gradient, written the plain way. It tests nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def norm_of(gradient: Mapping[str, Tensor]) -> float:
    """Of all parameters together."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))


def sgd(
    values: np.ndarray[Any, Any],
    gradients: list[np.ndarray[Any, Any]],
    rates: list[float],
    momentum: float,
    decay: float,
) -> np.ndarray[Any, Any]:
    """Parameters after steps of SGD with momentum (without dampening, not Nesterov's), decay in the gradient."""
    velocity = np.zeros_like(values)
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = momentum * velocity + gradient + decay * values
        values = values - rate * velocity
    return values


def adamw(
    values: np.ndarray[Any, Any], gradients: list[np.ndarray[Any, Any]], rates: list[float], decay: float
) -> np.ndarray[Any, Any]:
    """Parameters after steps of AdamW (Loshchilov and Hutter, arXiv 1711.05101): decay apart from the moments."""
    first, second = np.zeros_like(values), np.zeros_like(values)
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        ahead = (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
        values = values - rate * decay * values - rate * ahead
    return values
