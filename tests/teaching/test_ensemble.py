"""The mean of several teachers' probabilities, and the scale at which each is calibrated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from teachonce.errors import DataError
from teachonce.teaching import ensemble
from teachonce.teaching.ensemble import CALIBRATION_ROWS, SCALE_RANGE, calibrate, calibration_rows, merged_log_probs
from teachonce.teaching.teacher import TeacherHead, head_of

ROWS, CLASSES, WIDTH = 3000, 7, 8


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random unit vectors."""
    return nn.functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def head(scale: float, seed: int = 0, ties: bool = False, width: int = WIDTH) -> TeacherHead:
    """Random classes; with `ties` the last one is the second again."""
    classes = unit(CLASSES, width, seed).numpy()
    if ties:
        classes[-1] = classes[1]
    return head_of(classes, scale, "cpu")


def drawn(teacher: TeacherHead, images: torch.Tensor, scale: float) -> torch.Tensor:
    """Labels drawn from the teacher's own probabilities at a scale."""
    cosines = teacher.logits(images).double() / teacher.logit_scale
    return torch.multinomial((scale * cosines).softmax(1), 1, generator=torch.Generator().manual_seed(9))[:, 0]


@pytest.mark.parametrize("ties", [False, True])
def test_a_known_scale_is_found(ties: bool) -> None:
    """Labels drawn at scale 6 bring a teacher of scale 40 back to 6, and make its labels more probable."""
    teacher, images = head(40.0, ties=ties), unit(ROWS, WIDTH, 5)
    calibration = calibrate(teacher, images, drawn(teacher, images, 6.0))
    assert calibration.scale == pytest.approx(6.0, rel=0.1)  # 3,000 draws
    assert calibration.nll_after < calibration.nll_before and not calibration.at_bound


@pytest.mark.parametrize("ties", [False, True])
def test_the_scale_is_the_minimum_of_the_likelihood(ties: bool) -> None:
    """By brute force in float64, with classes of one name counted as one."""
    teacher, images = head(10.0, ties=ties), unit(200, WIDTH, 6)
    labels = drawn(teacher, images, 15.0)
    calibration = calibrate(teacher, images, labels)
    cosines = teacher.logits(images).double() / 10.0
    same_name = teacher.inverse_C[labels][:, None] == teacher.inverse_C[None]

    def loss(scale: float) -> float:
        p = (scale * cosines).softmax(1)
        return float(-torch.log((p * same_name).sum(1)).mean())

    assert calibration.nll_before == pytest.approx(loss(10.0), rel=1e-5)
    assert calibration.nll_after == pytest.approx(loss(calibration.scale), rel=1e-5)
    grid = np.exp(np.linspace(math.log(10 / SCALE_RANGE), math.log(10 * SCALE_RANGE), 400))
    assert loss(calibration.scale) <= min(map(loss, grid)) + 1e-6
    again = calibrate(teacher, images, labels)
    assert again == calibration, "the same bits every time"


def test_labels_that_determine_no_scale_are_said() -> None:
    """Always right: the larger the better; the search ends at its bound and says so."""
    teacher, images = head(10.0), unit(50, WIDTH, 7)
    calibration = calibrate(teacher, images, teacher.logits(images).argmax(1))
    assert calibration.at_bound and calibration.scale == pytest.approx(10 * SCALE_RANGE)
    worst = calibrate(teacher, images, teacher.logits(images).argmin(1))
    assert worst.at_bound and worst.scale == pytest.approx(10 / SCALE_RANGE)


def test_probabilities_are_averaged() -> None:
    """Against float64, with weights, two widths and two scales; equal names stay exactly equal."""
    heads = [head(30.0, 1, ties=True), head(12.0, 2, ties=True, width=5)]
    images = [unit(40, WIDTH, 3), unit(40, 5, 4)]
    weights = (0.3, 0.7)
    log_probs = merged_log_probs(heads, images, weights)
    p = sum(
        w * (h.logit_scale * x.double() @ h.features_UE.double().T)[:, h.inverse_C].softmax(1)
        for h, x, w in zip(heads, images, weights, strict=True)
    )
    assert isinstance(p, torch.Tensor) and log_probs.dtype == torch.float32
    np.testing.assert_allclose(log_probs.numpy(), p.log().numpy(), atol=2e-5)
    assert torch.equal(log_probs[:, 1], log_probs[:, -1])
    np.testing.assert_allclose(log_probs.double().exp().sum(1), 1, atol=1e-5)


def test_impossible_for_one_teacher_is_not_impossible() -> None:
    """Log-probabilities hundreds of nats down stay finite."""
    heads = [head(3000.0, 1), head(1.0, 2)]
    assert torch.isfinite(merged_log_probs(heads, [unit(9, WIDTH, 3), unit(9, WIDTH, 4)], (0.5, 0.5))).all()


def test_rows_to_calibrate_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usable ones only, each once, rising, always the same ones, fewer where the vocabulary is large."""
    usable = np.random.default_rng(0).random(20_000) < 0.5
    rows = calibration_rows(usable, 10)
    assert len(rows) == CALIBRATION_ROWS == len(np.unique(rows)) and (np.diff(rows) > 0).all()
    assert usable[rows].all() and np.array_equal(rows, calibration_rows(usable, 10))
    assert rows[0] < 200 and rows[-1] > 19_800, "from all over the store"
    few = np.zeros(50, np.bool_)
    few[[3, 30]] = True
    assert calibration_rows(few, 10).tolist() == [3, 30]
    monkeypatch.setattr(ensemble, "MOST_SIMILARITIES", 1000)
    assert len(calibration_rows(usable, 10)) == 100
    with pytest.raises(DataError, match="nothing to calibrate on") as caught:
        calibration_rows(np.zeros(5, np.bool_), 10)
    assert "calibrate=false" in caught.value.hint
