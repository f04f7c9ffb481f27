"""train --log tensorboard: the curves of a run, whole or killed and resumed, are those of events.jsonl."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from train_runs import killed_before

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.errors import EnvironmentFault
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.train import TrainRequest, train

SETTINGS = ["steps=12", "batch_size=16", "checkpoint_every=4", "log_every=1", "held_out=0.3", "evaluate_every=3"]


def request_for(labels: Path, student: str, out: Path, resume: bool = False, log: bool = True) -> TrainRequest:
    """A short run with held-out samples."""
    config = load_train_config(None, SETTINGS)
    return TrainRequest(
        labels=labels,
        student=student,
        out=out,
        config=config,
        resume=resume,
        threads=1,
        log=("tensorboard",) if log else (),
    )


def curves(out: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard's own reader finds: (step, value) of every curve."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = event_accumulator.EventAccumulator(str(out / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(e.step, pytest.approx(e.value)) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def logged(out: Path) -> dict[str, list[tuple[int, Any]]]:
    """The same from events.jsonl."""
    events = read_events(out / "events.jsonl")
    figures = ("loss", "hard", "soft", "anchor", "learning_rate", "gradient_norm", "candidates", "forced")
    series = {f"train/{name}": [(e["step"], e[name]) for e in events if e["event"] == "step"] for name in figures}
    for name in ("top1", "rows"):
        series[f"held_out/{name}"] = [(e["step"], e[name]) for e in events if e["event"] == "held_out"]
    return series


def test_a_run_that_is_killed_and_resumed_has_each_step_once(finished: Path, student: str, tmp_path: Path) -> None:
    """Killed between two checkpoints, twice; then the curves are those of the log, and of a run that never stopped."""
    out = tmp_path / "run"
    for number, step in enumerate((6, 11)):
        with killed_before(step):
            train(request_for(finished, student, out, resume=number > 0), Silent())
    train(request_for(finished, student, out, resume=True), Silent())
    assert curves(out) == logged(out)
    train(request_for(finished, student, tmp_path / "whole"), Silent())
    assert curves(tmp_path / "whole") == logged(tmp_path / "whole") == logged(out)


def test_it_may_come_and_go_with_each_attempt(finished: Path, student: str, tmp_path: Path) -> None:
    """It is no part of the config: a run goes on with or without it, to the same prompts, and late curves are whole."""
    out = tmp_path / "run"
    with killed_before(6):
        train(request_for(finished, student, out, log=False), Silent())
    assert not (out / "tensorboard").exists()
    late = train(request_for(finished, student, out, resume=True), Silent())
    assert curves(out) == logged(out)
    plain = train(request_for(finished, student, tmp_path / "plain", log=False), Silent())
    assert late.prompts_digest == plain.prompts_digest
    configs = [(folder / "config.toml").read_bytes() for folder in (out, tmp_path / "plain")]
    assert configs[0] == configs[1] and b"tensorboard" not in configs[0]


def test_a_missing_package_stops_it_before_anything_starts(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 6 with the line that installs it; no folder is made."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    with pytest.raises(EnvironmentFault) as caught:
        train(request_for(finished, student, tmp_path / "run"), Silent())
    assert caught.value.hint == "pip install 'teachonce[tensorboard]'"
    assert not (tmp_path / "run").exists()
