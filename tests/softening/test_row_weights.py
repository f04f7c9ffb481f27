"""Rows weigh teachers by how sure these are: the plain definitions in float64, with classes that share a name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from teachonce.softening.row_weights import row_weights

NAMES = [np.array([0, 1, 1, 2, 3, 4]), np.array([0, 1, 1, 2, 3, 4])]


def plain(p: np.ndarray, names: np.ndarray, rule: str) -> np.ndarray:
    """How sure a teacher is of each row, one row after the other."""
    sure = []
    for row in p.astype(np.float64):
        of_name = np.array([row[names == name].sum() for name in np.unique(names)])
        first, second = sorted(of_name)[-1:-3:-1]
        entropy = -sum(x * np.log(x) for x in of_name if x > 0)
        sure.append({"confidence": first, "entropy": np.exp(-entropy), "margin": first - second, "equal": 1.0}[rule])
    return np.array(sure)


def softmax(seed: int, spread: float) -> torch.Tensor:
    """Logs of probabilities of 30 rows; classes 1 and 2 share a name, and tie."""
    logits = spread * torch.randn(30, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[:, 2] = logits[:, 1]
    return logits.log_softmax(1)


@pytest.mark.parametrize("rule", ["equal", "confidence", "entropy", "margin"])
def test_weights_are_as_defined(rule: str) -> None:
    """Two teachers, one sharper; the weights of a row add up to 1."""
    teachers = [softmax(1, 1.0), softmax(2, 4.0)]
    sure = np.stack([plain(t.exp().numpy(), names, rule) for t, names in zip(teachers, NAMES, strict=True)])
    weights = row_weights([t.float() for t in teachers], [torch.from_numpy(n) for n in NAMES], rule)  # type: ignore[arg-type]
    np.testing.assert_allclose(weights.numpy(), sure / sure.sum(0), atol=2e-6)
    np.testing.assert_allclose(weights.sum(0).numpy(), 1, atol=1e-6)


def test_one_name_of_two_classes_is_no_hesitation() -> None:
    """A teacher that is sure of a name that two classes share has the margin of one that is sure of a class."""
    sure = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).clamp_min(1e-30).log()
    alone = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).clamp_min(1e-30).log()
    weights = row_weights([sure, alone], [torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 3])], "margin")
    torch.testing.assert_close(weights, torch.full((2, 1), 0.5))


def test_teachers_that_know_nothing_count_equally() -> None:
    """No margin at all on either side: no division by zero."""
    flat = torch.full((3, 4), 0.25).log()
    apart = torch.arange(4)
    assert torch.equal(row_weights([flat, flat], [apart, apart], "margin"), torch.full((2, 3), 0.5))
