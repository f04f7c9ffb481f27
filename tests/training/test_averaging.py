"""Averages of prompts against sums over all steps in float64, and what a checkpoint of them gives back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from teachonce.errors import IntegrityError, TeachOnceError, UsageError
from teachonce.runs.checkpoint import Identity, load_checkpoint, save_checkpoint
from teachonce.training.averaging import PromptAverage

STEPS = 40


class Prompted(nn.Module):
    """Two parameters, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.context = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.key = nn.Parameter(torch.randn(2, 3, 4, generator=generator))

    def named(self) -> dict[str, Tensor]:
        """Its parameters by name."""
        return dict(self.named_parameters())


def at_step(step: int) -> dict[str, Tensor]:
    """Parameters as they are after a step."""
    return Prompted(step).named()


def average_of(kind: Any, **options: float) -> PromptAverage:
    """An average of a run of 40 steps."""
    given = {"decay": 0.9, "mean": 0.75, "deviation": 0.1} | options
    return PromptAverage(kind, STEPS, given["decay"], given["mean"], given["deviation"], at_step(1000))


def weights(kind: str, count: int, decay: float, mean: float, deviation: float) -> np.ndarray[Any, Any]:
    """The weight of each step, as the papers write it, summing to one."""
    finished = np.arange(1, count + 1)
    if kind == "ema":
        raw = (1 - decay) * decay ** (count - finished)
    else:
        raw = np.exp(-((finished - mean * STEPS) ** 2) / (2 * (deviation * STEPS) ** 2))
    return np.asarray(raw / raw.sum())


@pytest.mark.parametrize("count", [1, 2, 17, STEPS])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ema", {"decay": 0.9}),
        ("ema", {"decay": 0.1}),
        ("ema", {"decay": 0.9999}),
        ("gaussian", {}),
        ("gaussian", {"mean": 0.25, "deviation": 0.3}),
        ("gaussian", {"mean": 1.0, "deviation": 0.05}),
    ],
)
def test_an_average_is_the_weighted_sum_over_all_steps(kind: str, options: dict[str, float], count: int) -> None:
    average = average_of(kind, **options)
    for step in range(count):
        average.update(step, at_step(step))
    shares = weights(kind, count, **({"decay": 0.9, "mean": 0.75, "deviation": 0.1} | options))
    for name in ("context", "key"):
        plain = sum(float(w) * at_step(step)[name].detach().double() for step, w in enumerate(shares))
        assert torch.allclose(average.value(name, torch.zeros(1)).double(), torch.as_tensor(plain), atol=2e-6, rtol=0)


def test_weights_beyond_the_range_of_floats_do_no_harm() -> None:
    """A bell so narrow that all weights vanish, and a decay so fast that they explode: still a mean, of the nearest."""
    for kind, options, nearest in (("gaussian", {"mean": 0.5, "deviation": 1e-4}, 19), ("ema", {"decay": 1e-200}, 39)):
        average = average_of(kind, **options)
        for step in range(STEPS):
            average.update(step, at_step(step))
        assert torch.equal(average.value("key", torch.zeros(1)), at_step(nearest)["key"])


def test_none_averages_nothing() -> None:
    """It has no state, and its value is the parameter itself."""
    average, parameters = average_of("none"), torch.ones(2)
    average.update(0, at_step(0))
    assert average.state() == {} and average.value("context", parameters) is parameters


def test_an_average_is_no_view_of_the_parameters() -> None:
    """What training does to a parameter later does not change the average."""
    average, module = average_of("ema"), Prompted(1)
    average.update(0, module.named())
    before = average.value("key", module.key).clone()
    assert torch.equal(before, module.key) and not average.value("key", module.key).requires_grad
    with torch.no_grad():
        module.key.zero_()
    assert torch.equal(average.value("key", module.key), before)


@pytest.mark.parametrize("kind", ["none", "ema", "gaussian"])
@pytest.mark.parametrize("stop", [0, 1, 13, STEPS - 1])
def test_a_resumed_average_has_the_same_bits(kind: str, stop: int, tmp_path: Path) -> None:
    """Through a checkpoint and new objects, also before the first step."""
    here = Identity(config="c", store="s", student="t")
    straight, begun = average_of(kind), average_of(kind)
    for step in range(STEPS):
        straight.update(step, at_step(step))
    for step in range(stop):
        begun.update(step, at_step(step))
    module = Prompted(7)
    save_checkpoint(tmp_path, stop, module, torch.optim.SGD(module.parameters(), lr=0.1), here, begun.state())
    resumed, other = average_of(kind), Prompted(8)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    assert load_checkpoint(tmp_path, other, optimizer, here, resumed.state()) == stop
    assert torch.equal(other.key, module.key)
    for step in range(stop, STEPS):
        resumed.update(step, at_step(step))
    for name in ("context", "key"):
        assert torch.equal(resumed.value(name, module.key), straight.value(name, module.key))


@pytest.mark.parametrize(("there", "here"), [("none", "ema"), ("gaussian", "none")])
def test_a_checkpoint_with_or_without_an_average_is_not_the_other(there: str, here: str, tmp_path: Path) -> None:
    """Named tensor by tensor; neither the module nor the average is touched."""
    identity, module, other = Identity(config="c", store="s", student="t"), Prompted(1), Prompted(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    save_checkpoint(tmp_path, 3, module, optimizer, identity, average_of(there).state())
    average = average_of(here)
    with pytest.raises(IntegrityError, match="average.log_weight: expected .*, found"):
        load_checkpoint(tmp_path, other, torch.optim.SGD(other.parameters(), lr=0.1), identity, average.state())
    assert torch.equal(other.key, Prompted(2).key)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ema", {"decay": 0.0}),
        ("ema", {"decay": 1.0}),
        ("gaussian", {"deviation": 0.0}),
        ("gaussian", {"deviation": math.nan}),
    ],
)
def test_numbers_without_meaning_are_refused(kind: str, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(options))} = "):
        average_of(kind, **options)


def test_a_parameter_may_not_be_named_as_the_weight_is() -> None:
    with pytest.raises(TeachOnceError, match="log_weight"):
        PromptAverage("ema", STEPS, 0.9, 0.5, 0.1, {"log_weight": torch.zeros(1)})
