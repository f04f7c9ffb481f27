"""Averages of prompts over the steps of a run: exponential, or with the Gaussian weights of PromptSRC.

The whole state of an average is tensors that go into checkpoints, so that a resumed average has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from teachonce.errors import TeachOnceError, UsageError

AverageKind = Literal["none", "ema", "gaussian"]
LOG_WEIGHT = "log_weight"  # the key of the weight in the state, beside the names of the parameters


class PromptAverage:
    """A weighted mean of parameters over the steps that are finished, kept as a running mean.

    The step that makes t steps finished weighs
        ema:       decay^(-t): the latest counts most and older ones fade by `decay` a step; the weights sum to one,
                   so the start does not pull (as Adam's corrected moments, arXiv 1412.6980, section 3);
        gaussian:  exp(-(t/steps - mean)^2 / (2 deviation^2)): PromptSRC, arXiv 2307.06948, section 3.2, there over
                   epochs; early prompts are immature, late ones fit the trained classes.
    Weights are kept as logarithms: a sum of them neither overflows nor vanishes.

    Args:
        kind: `none` keeps nothing.
        steps: of the whole run.
        decay: ema: above 0, below 1.
        mean: gaussian: where the weight is largest, as a share of the run.
        deviation: gaussian: standard deviation as a share of the run, above 0.
        parameters: what is averaged, by name, as it begins.
        number: of the average among those of a run, which share a checkpoint.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(
        self,
        kind: AverageKind,
        steps: int,
        decay: float,
        mean: float,
        deviation: float,
        parameters: Mapping[str, Tensor],
        number: int = 0,
    ) -> None:
        if kind == "ema" and not 0 < decay < 1:
            raise UsageError(f"decay = {decay}: an exponential average needs a number above 0 and below 1")
        if kind == "gaussian" and not deviation > 0:
            raise UsageError(f"deviation = {deviation}: a Gaussian average needs a number above 0")
        self.kind, self._steps, self._decay, self._mean, self._deviation = kind, steps, decay, mean, deviation
        kept = {} if kind == "none" else parameters
        self._means = {name: p.detach().clone() for name, p in kept.items()}
        self._weight_name = f"{LOG_WEIGHT}.{number}" if number else LOG_WEIGHT
        self._log_weight = torch.tensor(-math.inf, dtype=torch.float64)
        if self._weight_name in self._means:
            raise TeachOnceError(f"a parameter is named {self._weight_name}, which the state of an average uses itself")

    @torch.no_grad()
    def update(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Take in the parameters as they are after `step` (from 0); call it once a step."""
        if self.kind == "none":
            return
        log_weight, before = self._log_of(step + 1), float(self._log_weight)
        largest = max(log_weight, before)
        together = largest + math.log(math.exp(log_weight - largest) + math.exp(before - largest))
        for name, mean in self._means.items():
            mean.lerp_(parameters[name].detach(), math.exp(log_weight - together))
        self._log_weight.fill_(together)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds, themselves: what is copied into them is the state. Empty for `none`."""
        return {**self._means, self._weight_name: self._log_weight} if self._means else {}

    def value(self, name: str, current: Tensor) -> Tensor:
        """The average of a parameter, or `current`, the parameter's value now, where nothing is averaged."""
        return self._means.get(name, current)

    def _log_of(self, finished: int) -> float:
        """ln of the weight of the parameters after so many steps."""
        if self.kind == "ema":
            return -finished * math.log(self._decay)
        return -(((finished / self._steps - self._mean) / self._deviation) ** 2) / 2
