"""NLL, ECE and McNemar's test equal plain formulas in float64 and scipy."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from teachonce.evaluation.statistics import expected_calibration_error, likelihoods, mcnemar


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_likelihoods_are_those_of_a_softmax_over_all_classes(scale: float) -> None:
    """Also with classes of equal features, which stand in the sum as often as they are there; over two blocks."""
    rng = np.random.default_rng(3)
    distinct = rng.normal(size=(7, 6))
    distinct /= np.linalg.norm(distinct, axis=1, keepdims=True)
    inverse = np.array([0, 1, 2, 1, 3, 4, 1, 5, 6, 0])
    images = rng.normal(size=(1100, 6))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    labels = rng.integers(0, 10, 1100)
    nll, confidence = likelihoods(
        torch.from_numpy(images).float(),
        torch.from_numpy(distinct[inverse]).float(),
        torch.from_numpy(labels),
        torch.from_numpy(inverse),
        scale,
    )
    logits = scale * images @ distinct[inverse].T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert nll == pytest.approx(-np.log(p[np.arange(1100), labels]), abs=2e-4, rel=1e-5)
    assert confidence == pytest.approx(p.max(1), abs=2e-5)


def plain_ece(confidence: list[float], credit: list[float], bins: int) -> float:
    """A loop: sort, cut into runs whose sizes differ by one at most, the larger first."""
    rows = sorted(range(len(confidence)), key=lambda i: confidence[i])
    gap, start = 0.0, 0
    for number in range(bins):
        size = len(rows) // bins + (number < len(rows) % bins)
        part = rows[start : start + size]
        start += size
        if part:
            means = [sum(values[i] for i in part) / size for values in (confidence, credit)]
            gap += size / len(rows) * abs(means[0] - means[1])
    return gap


@pytest.mark.parametrize(("n", "bins"), [(150, 15), (157, 15), (7, 15), (1, 15), (40, 1), (100, 10)])
def test_ece_is_the_mean_gap_over_bins_of_equal_mass(n: int, bins: int) -> None:
    """Also with fewer images than bins."""
    rng = np.random.default_rng(n)
    confidence, credit = rng.uniform(size=n), rng.choice([0, 0.5, 1], size=n)
    error = expected_calibration_error(confidence, credit, bins)
    assert error == pytest.approx(plain_ece(confidence.tolist(), credit.tolist(), bins), abs=1e-12)


def test_ece_of_a_calibrated_and_of_a_boastful_classifier() -> None:
    """0 where confidence is accuracy in every bin; the distance where it is always the same."""
    confidence = np.repeat([0.2, 0.6, 1.0], 50)
    credit = np.concatenate([np.tile([1, 0, 0, 0, 0], 10), np.tile([1, 1, 1, 0, 0], 10), np.ones(50)])
    assert expected_calibration_error(confidence, credit, 3) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.full(60, 0.9), np.tile([1.0, 0.0], 30)) == pytest.approx(0.4)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (12, 5), (5, 12), (0, 20), (150, 210)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    """As scipy has it, and as a sum of exact fractions."""
    n = b + c
    exact = min(Fraction(1), 2 * sum(Fraction(comb(n, i), 2**n) for i in range(min(b, c) + 1))) if n else Fraction(1)
    assert mcnemar(b, c) == pytest.approx(float(exact), rel=1e-12) == mcnemar(c, b)
    assert n == 0 or mcnemar(b, c) == binomtest(b, n, 0.5).pvalue
