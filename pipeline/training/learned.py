"""What a run trains, prompts and a head: which of it moves in which step, its optimiser, its averages, and its result.

With head_learn = "after" a run has two parts: the prompts move first, while there is no head; then they are what they
will be, and the head moves. In every other run all moves in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from teachonce.errors import UsageError
from teachonce.recipe.config import TrainConfig
from teachonce.training.averaging import PromptAverage
from teachonce.training.schedule import learning_rate, optimizer_of
from teachonce.training.student import PromptedStudent

OF_HEAD = "head."  # what the names of a head's parameters begin with


class Learned:
    """The parameters of a run.

    Args:
        config: of the run.
        student: with its prompts and its head.
        steps: that prompts move, or all of them together.

    Attributes:
        steps: of the whole run.
        alone_from: the first step in which the head moves alone; `steps` where there is none.
        averages: running means of parameters, each over the steps in which they move.
    """

    def __init__(self, config: TrainConfig, student: PromptedStudent, steps: int) -> None:
        self.config, self.student = config, student
        self.steps = self.alone_from = steps if config.learns else 0
        named = dict(student.learners.named_parameters())
        self._parts = [named]
        if config.head_after:
            self.steps = steps + (config.head.head_steps if config.head.is_trained else 0)
            of_head = {name: p for name, p in named.items() if name.startswith(OF_HEAD)}
            self._parts = [{name: p for name, p in named.items() if name not in of_head}, of_head]
        self.optimizer = optimizer_of(config, student)
        lengths = (self.alone_from, self.steps - self.alone_from)
        self.averages = [
            self._average(length, part, number)
            for number, (part, length) in enumerate(zip(self._parts, lengths[: len(self._parts)], strict=True))
        ]

    def _average(self, steps: int, parameters: dict[str, nn.Parameter], number: int) -> PromptAverage:
        moves = self.config.optimiser
        kind = moves.averaging if steps and parameters else "none"
        return PromptAverage(
            kind, steps, moves.average_decay, moves.average_mean, moves.average_deviation, parameters, number
        )

    def moving(self, step: int) -> dict[str, nn.Parameter]:
        """The parameters that move in a step (from 0), by name."""
        return self._parts[self.alone(step)]

    def moved(self, steps: int) -> set[str]:
        """The names of those that have moved in so many steps, of which an optimiser remembers something."""
        return {name for step in {0, steps - 1} if 0 <= step < steps for name in self.moving(step)}

    def within(self, step: int) -> tuple[int, int]:
        """The step and the number of steps, of the part of the run in which the step lies."""
        if self.alone(step):
            return step - self.alone_from, self.steps - self.alone_from
        return step, self.alone_from

    def alone(self, step: int) -> bool:
        """Whether the head moves alone in a step."""
        return self.config.head_after and step >= self.alone_from

    def head_acts_after(self, steps: int) -> bool:
        """Whether the head is part of what a run is after so many steps."""
        return not self.config.head_after or steps >= self.alone_from + (self.steps > self.alone_from)

    def settle(self) -> None:
        """Make the prompts their average, where there is one: that is the result of the run's first part."""
        with torch.no_grad():
            for name, parameter in self._parts[0].items():
                parameter.copy_(self.averages[0].value(name, parameter))
                parameter.grad = None

    def rates(self, step: int, warmup: int) -> list[float]:
        """The learning rate of the prompts and of the head in a step, as far as there are such."""
        number, steps = self.within(step)
        peaks = [self.config.optimiser.learning_rate] * self._has(False) + [self.config.head.head_rate] * self._has(
            True
        )
        return [learning_rate(self.config, steps, number, warmup, peak) for peak in peaks]

    def _has(self, head: bool) -> bool:
        return any(name.startswith(OF_HEAD) == head for name, _ in self.student.learners.named_parameters())

    def update(self, step: int, gradient: list[Tensor], rates: list[float]) -> None:
        """Move what moves in the step, given its gradient in the order of `moving`, and take it into the average."""
        moving = self.moving(step)
        for parameter, part in zip(moving.values(), gradient, strict=True):
            parameter.grad = part
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimizer.step()
        average = self.averages[self.alone(step)]
        average.update(self.within(step)[0], dict(moving))

    def average_state(self) -> dict[str, Tensor]:
        """The tensors of all averages, as `PromptAverage.state`."""
        return {name: x for average in self.averages for name, x in average.state().items()}

    def require_sound(self, steps: int) -> None:
        """Refuse parameters that are no longer numbers, or from which a tower makes none.

        An update that is too large shows in the next loss only; this is asked before a checkpoint is written.

        Args:
            steps: that are finished, for the message.

        Raises:
            UsageError: the prompts as they are, or their average, give features that are NaN or infinite.
        """
        sound = all(bool(p.isfinite().all()) for p in self.student.learners.parameters())
        with self.result() as student:
            sound = sound and student.is_sound()
        if not (sound and self.student.is_sound()):
            raise UsageError(
                f"after {steps} steps the prompts give features that are not numbers; the last checkpoint is kept",
                hint="use a smaller learning_rate or a longer warm-up in a new run",
            )

    @contextmanager
    def result(self) -> Iterator[PromptedStudent]:
        """The student with the parameters that are the result: averaged ones where the config says so."""
        named = dict(self.student.learners.named_parameters())
        kept = {name: parameter.detach().clone() for name, parameter in named.items()}
        averaged: dict[str, Any] = {
            name: average for part, average in zip(self._parts, self.averages, strict=True) for name in part
        }
        try:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(averaged[name].value(name, parameter))
            yield self.student
        finally:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(kept[name])
