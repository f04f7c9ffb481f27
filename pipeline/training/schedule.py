"""Numbers that change over a run as pure functions of the step: the learning rate and the weight of the soft loss.

The functions hold no state, so that a resumed run needs the step only.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from teachonce.recipe.config import TrainConfig
from teachonce.training.student import PromptedStudent


def warmup_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """How many steps the warm-up has, said in steps or in passes over the samples."""
    moves = config.optimiser
    return math.ceil(moves.warmup_epochs * steps_per_epoch) or moves.warmup_steps


def learning_rate(
    config: TrainConfig, steps: int, step: int, warmup: int | None = None, peak: float | None = None
) -> float:
    """A warm-up, then constant or a half cosine that would be zero one step after the last.

    Args:
        steps: of the whole run.
        step: from 0.
        warmup: as of `warmup_steps`; None: the config's own number of steps.
        peak: where the rate is highest; None: the config's learning rate.
    """
    moves = config.optimiser
    rising = moves.warmup_steps if warmup is None else warmup
    highest = moves.learning_rate if peak is None else peak
    if step < rising:
        if moves.warmup == "constant":
            return moves.warmup_rate
        return highest * (step + 1) / rising
    if moves.schedule == "constant":
        return highest
    share = (step - rising) / max(1, steps - rising)
    return highest * 0.5 * (1 + math.cos(math.pi * share))


def soft_weight(config: TrainConfig, steps: int, step: int) -> float:
    """Lambda in CE + lambda tau^2 KL: constant, or linear between 0 and its value over the run."""
    share = step / max(1, steps - 1)
    factor = {"constant": 1.0, "rise": share, "fall": 1.0 - share}[config.loss.soft_schedule]
    return config.loss.soft_weight * factor


def optimizer_of(config: TrainConfig, student: PromptedStudent, fused: bool | None = None) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        fused: whether all parameters are updated by one kernel, equal up to rounding; None: where that saves launches.
            Its state has the same keys and shapes either way, so that a run may go on on another device.
    """
    moves, one = config.optimiser, fused
    prompts = [*student.parameters("text"), *student.parameters("image")]
    groups: list[dict[str, Any]] = [{"params": prompts}] if prompts else []
    if student.parameters("head"):
        groups.append({"params": student.parameters("head"), "weight_decay": 0.0})  # a head has a penalty of its own
    groups = groups or [{"params": []}]  # of a head from which nothing is trained
    if one is None and student.clip.device.type == "cuda":
        one = True
    rate, decay = moves.learning_rate, moves.weight_decay
    if moves.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=moves.momentum, weight_decay=decay, fused=one)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=one)
