"""Each row's temperature gives its soft label the entropy that was asked for, and rows that cannot have it say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from teachonce.softening.row_temperature import RANGE, row_temperatures


def entropy_of(logits: np.ndarray, temperature: float) -> float:
    """In nats, the plain way."""
    shifted = logits.astype(np.float64) / temperature
    weights = np.exp(shifted - shifted.max())
    p = weights / weights.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def searched(logits: np.ndarray, entropy: float) -> float:
    """The temperature by halving an interval two hundred times."""
    low, high = math.log(1 / RANGE), math.log(RANGE)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if entropy_of(logits, math.exp(middle)) > entropy else (middle, high)
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("entropy", [0.05, 0.7, 2.0, 4.0])
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_the_entropy_is_the_one_asked_for(entropy: float, spread: float) -> None:
    """Rows of every sharpness, against a search by halving in float64."""
    logits = (spread * np.random.default_rng(0).normal(size=(40, 90))).astype(np.float32)
    solved = row_temperatures(torch.from_numpy(logits), entropy)
    for row in range(len(logits)):
        if solved.too_flat_B[row] or solved.too_sharp_B[row]:
            continue
        temperature = float(solved.values_B[row])
        assert entropy_of(logits[row], temperature) == pytest.approx(entropy, abs=1e-7)
        assert temperature == pytest.approx(searched(logits[row], entropy), rel=1e-6)
    assert int((solved.too_flat_B | solved.too_sharp_B).sum()) < len(logits), "some row was solved"


def test_an_offset_of_all_logits_changes_nothing() -> None:
    """Softmax ignores an offset, and cosines of a CLIP have a large one."""
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, moved = (row_temperatures(x, 1.5).values_B for x in (logits, logits + 1000))
    torch.testing.assert_close(plain, moved, rtol=1e-9, atol=0)


def test_rows_that_cannot_have_it_get_the_nearest_end_of_the_range() -> None:
    """Four tied classes have at least ln 4 nats; a winner by a thousand nats stays sharp at any temperature."""
    rows = torch.zeros(3, 8)
    rows[0, 4:] = -50.0  # four tie
    rows[1, 0] = 1000.0
    rows[2] = torch.linspace(0, 3, 8)
    solved = row_temperatures(rows, 1.0)
    assert solved.too_flat_B.tolist() == [True, False, False]
    assert solved.too_sharp_B.tolist() == [False, True, False]
    assert solved.values_B[0].item() == pytest.approx(1 / RANGE) and solved.values_B[1].item() == pytest.approx(RANGE)
    assert entropy_of(rows[2].numpy(), float(solved.values_B[2])) == pytest.approx(1.0, abs=1e-7)


def test_classes_that_tie_still_tie() -> None:
    """A row is divided by one number."""
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))
    logits[:, 7] = logits[:, 3]
    values = row_temperatures(logits, 1.0).values_B
    scaled = (logits.double() / values[:, None]).float()
    assert torch.equal(scaled[:, 7], scaled[:, 3])
