"""The learning rate and the weight of the soft loss against their closed forms, at every border of a run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from teachonce.recipe.config import TrainConfig
from teachonce.training.schedule import learning_rate, soft_weight, warmup_steps

PEAK = 0.5
STEPS, WARM = 100, 10


def rate(step: int, steps: int = STEPS, **options: Any) -> float:
    """The learning rate of a run with ten steps of warm-up."""
    given: dict[str, Any] = {"learning_rate": PEAK, "warmup_steps": WARM, "warmup_rate": 0.002} | options
    return learning_rate(TrainConfig.of(steps=steps, **given), steps, step)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_linear_warm_up_rises_by_equal_parts_and_never_takes_a_step_of_size_zero(schedule: str) -> None:
    """The first step has one part of ten, the tenth all; the schedule begins at its full height after that."""
    rates = [rate(step, schedule=schedule, warmup="linear") for step in range(WARM + 1)]
    assert rates[:WARM] == pytest.approx([PEAK * (step + 1) / WARM for step in range(WARM)])
    assert rates[WARM] == PEAK


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_constant_warm_up_stays_at_its_own_rate_until_the_schedule_begins(schedule: str) -> None:
    """As POMP's: the step after it has the full learning rate."""
    rates = [rate(step, schedule=schedule, warmup="constant") for step in range(WARM + 1)]
    assert rates == [0.002] * WARM + [PEAK]


@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_cosine_falls_by_half_a_period_over_the_steps_after_the_warm_up(warmup: str) -> None:
    """Half the height in the middle; the step that would follow the last has rate 0, the last itself a little more."""
    rates = {step: rate(step, schedule="cosine", warmup=warmup) for step in range(WARM, STEPS + 1)}
    for step, actual in rates.items():
        assert actual == pytest.approx(PEAK * math.cos(math.pi / 2 * (step - WARM) / 90) ** 2, abs=1e-12), step
    assert rates[55] == pytest.approx(PEAK / 2)
    assert 0 < rates[99] == pytest.approx(PEAK * math.sin(math.pi / 180) ** 2)
    assert list(rates.values()) == sorted(rates.values(), reverse=True)


@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_constant_schedule_is_the_learning_rate_to_the_last_step(warmup: str) -> None:
    """Every step after the warm-up."""
    assert {rate(step, schedule="constant", warmup=warmup) for step in range(WARM, STEPS)} == {PEAK}


@pytest.mark.parametrize("warmup", ["linear", "constant"])
def test_without_warm_up_the_first_step_has_the_full_rate(warmup: str) -> None:
    """The cosine then spans the whole run."""
    assert rate(0, schedule="constant", warmup=warmup, warmup_steps=0) == PEAK
    rates = [rate(step, steps=4, schedule="cosine", warmup=warmup, warmup_steps=0) for step in range(4)]
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert rates == pytest.approx([PEAK * share for share in expected])


def test_a_warm_up_in_passes_over_the_samples_has_the_steps_of_the_store() -> None:
    """One pass of 37 steps, a part of one rounded up; without passes the number of steps counts."""
    counted = [warmup_steps(TrainConfig.of(warmup_epochs=epochs, warmup_steps=WARM), 37) for epochs in (1.0, 0.1, 0.0)]
    assert counted == [37, 4, WARM]
    config = TrainConfig.of(learning_rate=PEAK, warmup="constant", warmup_rate=0.002, warmup_epochs=1.0)
    assert [learning_rate(config, STEPS, step, 37) for step in (0, 36, 37)] == [0.002, 0.002, PEAK]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_run_of_one_step_moves(schedule: str) -> None:
    """With and without a warm-up that is longer than the run."""
    assert rate(0, steps=1, schedule=schedule, warmup_steps=0) == PEAK
    assert rate(0, steps=1, schedule=schedule, warmup_steps=1) == PEAK
    assert rate(0, steps=1, schedule=schedule, warmup_steps=20) == pytest.approx(PEAK / 20)


def weight(step: int, steps: int = 5, soft_schedule: Any = "constant") -> float:
    """Lambda of a run whose weight is 3."""
    return soft_weight(TrainConfig.of(steps=steps, soft_weight=3.0, soft_schedule=soft_schedule), steps, step)


@pytest.mark.parametrize(
    ("soft_schedule", "expected"),
    [("constant", [3.0] * 5), ("rise", [0.0, 0.75, 1.5, 2.25, 3.0]), ("fall", [3.0, 2.25, 1.5, 0.75, 0.0])],
)
def test_lambda_is_constant_or_linear_from_the_first_to_the_last_step(
    soft_schedule: str, expected: list[float]
) -> None:
    """Zero and the whole weight are both reached."""
    assert [weight(step, soft_schedule=soft_schedule) for step in range(5)] == pytest.approx(expected)


def test_lambda_of_a_run_of_one_step_is_where_its_line_begins() -> None:
    """Nothing is divided by zero."""
    weights = [weight(0, steps=1, soft_schedule=kind) for kind in ("constant", "rise", "fall")]
    assert weights == [3.0, 0.0, 3.0]
