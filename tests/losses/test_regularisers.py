"""Anchor, interpolation and projection against their formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.errors import UsageError
from teachonce.evaluation.contender import wise
from teachonce.losses.candidates import all_candidates, sampled_candidates
from teachonce.losses.regularisers import anchor, project


def unit(seed: int, count: int = 60, width: int = 8) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_anchor_is_the_mean_squared_distance_over_the_vocabulary() -> None:
    trained, frozen = unit(0).requires_grad_(), unit(1)
    value = anchor(trained, frozen, all_candidates(60).stands_for, 60)
    plain = np.mean([float(((a - b) ** 2).sum()) for a, b in zip(trained.detach(), frozen, strict=True)])
    assert value.item() == pytest.approx(plain, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, trained)
    assert torch.allclose(gradient, 2 / 60 * (trained - frozen).detach(), atol=1e-7), "(2 / |A|) (f - f0)"


@pytest.mark.parametrize("correction", ["ln", "none", "log10"])
def test_the_sampled_anchor_is_unbiased_whatever_the_softmax_does(correction: str) -> None:
    trained, frozen = unit(0), unit(1)
    exact = anchor(trained, frozen, torch.zeros(60), 60).item()
    values = []
    for step in range(1500):
        drawn = sampled_candidates([3, 7], [[1], [2]], 12, 60, 0, step, correction)  # type: ignore[arg-type]
        values.append(anchor(trained[drawn.classes], frozen[drawn.classes], drawn.stands_for, 60).item())
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - exact) < 4 * error < 0.1 * exact


def test_the_interpolation_ends_at_both_and_is_unit_between() -> None:
    frozen, trained = unit(0), unit(1)
    assert torch.allclose(wise(frozen, trained, 0.0), frozen, atol=1e-6)
    assert torch.allclose(wise(frozen, trained, 1.0), trained, atol=1e-6)
    middle = wise(frozen, trained, 0.3).double()
    plain = 0.7 * frozen.double() + 0.3 * trained.double()
    assert torch.allclose(middle, plain / plain.norm(dim=1, keepdim=True), atol=1e-6)


def test_opposite_features_meet_in_no_nan() -> None:
    assert wise(unit(0), -unit(0), 0.5).isfinite().all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        wise(unit(0), unit(1), alpha)


def parts(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (2, 3, 4), (1,))]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors]).double()


def test_an_opposing_gradient_loses_exactly_its_opposing_part() -> None:
    general = parts(0)
    gradient = [g - 0.4 * h for g, h in zip(parts(1), general, strict=True)]
    g, h = flat(gradient), flat(general)
    assert g @ h < 0
    projected = project(gradient, general)
    assert [x.shape for x in projected] == [x.shape for x in gradient] and projected[0].dtype == torch.float32
    assert torch.allclose(flat(projected), g - (g @ h) / (h @ h) * h, atol=1e-6)
    assert abs(flat(projected) @ h) < 1e-5 * h.norm() * g.norm()


def test_the_projection_is_of_the_whole_and_not_of_each_parameter() -> None:
    """One part opposes, the whole does not: nothing changes."""
    general = parts(0)
    gradient = [general[0], -0.1 * general[1], general[2]]
    assert flat(gradient) @ flat(general) > 0
    assert all(torch.equal(a, b) for a, b in zip(project(gradient, general), gradient, strict=True))


def test_a_zero_general_gradient_changes_nothing() -> None:
    gradient = parts(1)
    projected = project(gradient, [torch.zeros_like(x) for x in gradient])
    assert all(torch.equal(a, b) for a, b in zip(projected, gradient, strict=True))
