"""The linear reference in plain float64: all names in every softmax, AdamW written out, no short cut of the library."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def plain_fit(
    features: Floats, labels: npt.NDArray[np.int64], vectors: Floats, scale: float, steps: npt.NDArray[np.int64]
) -> Floats:
    """Class vectors after the fit, [V, E].

    Args:
        features: [n, E] unit.
        labels: [n] of V.
        vectors: [V, E] unit, where the fit starts.
        scale: of the logits.
        steps: [S, B] which rows make each step.
    """
    moves = np.isin(np.arange(len(vectors)), labels)
    residual, first, second = (np.zeros_like(vectors) for _ in range(3))
    for step, rows in enumerate(steps):
        x, y = features[rows], labels[rows]
        moved = vectors + residual
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        unit = np.where(moves[:, None], moved / length, vectors)
        logits = scale * x @ unit.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), y] -= 1
        on_unit = scale * p.T @ x / len(rows)
        gradient = (on_unit - unit * (on_unit * unit).sum(axis=1, keepdims=True)) / length
        gradient[~moves] = 0
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = 0.001 * (1 + math.cos(math.pi * step / len(steps))) / 2
        corrected = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        residual -= np.where(moves[:, None], rate * first / (1 - 0.9 ** (step + 1)) / corrected, 0)
    moved = vectors + residual
    return np.where(moves[:, None], moved / np.linalg.norm(moved, axis=1, keepdims=True), vectors)
