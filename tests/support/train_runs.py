"""Training runs that end in the middle, for tests of what resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Killed(BaseException):
    """Stands for a process that ends in the middle of a step."""


@contextmanager
def killed_before(step: int) -> Iterator[None]:
    """Runs inside die before they do this step."""
    from teachonce.training.trainer import Trainer

    real = Trainer.step

    def dying(self: Trainer, number: int) -> dict[str, float]:
        if number == step:
            raise Killed
        return real(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "step", dying)
        yield
