"""Short training runs from a finished store, and runs that end in the middle, for tests of what resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from teachonce.core.progress import Silent
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.log import read_events
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.train.outcome import TrainResult

STEPS = 18
BASE = (f"steps={STEPS}", "batch_size=16", "checkpoint_every=4", "log_every=1", "warmup_steps=3")


def config(*overrides: str) -> TrainConfig:
    """A short run on seventy photos: five steps an epoch, the last batch short."""
    return load_train_config(None, [*BASE, *overrides])


def run(labels: Path, student: str, out: Path, *overrides: str, resume: bool = False) -> TrainResult:
    """Train in this process, one thread."""
    request = TrainRequest(labels=labels, student=student, out=out, config=config(*overrides), resume=resume, threads=1)
    return train(request, Silent())


def steps_of(out: Path) -> list[dict[str, Any]]:
    """The logged steps without the clock."""
    return [
        {k: v for k, v in e.items() if k != "time"} for e in read_events(out / "events.jsonl") if e["event"] == "step"
    ]


class Killed(BaseException):
    """Stands for a process that ends in the middle of a step."""


@contextmanager
def killed_before(step: int) -> Iterator[None]:
    """Runs inside die before they do this step."""
    from teachonce.training.objective import StepReport
    from teachonce.training.trainer import Trainer

    real = Trainer.begin

    def dying(self: Trainer, number: int) -> StepReport:
        if number == step:
            raise Killed
        return real(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "begin", dying)
        yield
