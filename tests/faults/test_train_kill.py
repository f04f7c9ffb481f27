"""Faults 16 to 18: a training run that is terminated or killed goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.recipe.config_file import load_train_config
from teachonce.runs.folder import LOCK
from teachonce.stages.train import TrainRequest, train
from teachonce.training import held_out
from teachonce.training.held_out import HeldOutScore
from teachonce.training.trainer import Trainer

SETTINGS = ["steps=400", "batch_size=16", "checkpoint_every=7", "log_every=1", "seed=3"]


def start(labels: Path, student: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """`teachonce train` in a process of its own, one thread."""
    settings = [word for setting in (*SETTINGS, "threads=1") for word in ("--set", setting)]
    command = ["-m", "teachonce", "train", str(labels), "--student", student, "--out", str(out), *settings, *more]
    return subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has logged this step."""
    log = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and any(event.get("step", 0) >= step for event in read_events(log)):
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in time: {process.stderr.read().decode() if process.stderr else ''}")


@pytest.mark.slow  # in one process: `test_a_killed_run_resumes_bit_for_bit`
def test_sigterm_then_kill_then_the_same_prompts(finished: Path, student: str, tmp_path: Path) -> None:
    """SIGTERM checkpoints at the step and exits 143; kill -9 loses at most an interval; the result has equal bits."""
    out = tmp_path / "run"
    process = start(finished, student, out)
    wait_for_step(out, 20, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors.decode()
    stopped_at = read_events(out / "events.jsonl")[-1]["step"]
    assert (out / "checkpoints" / f"step-{stopped_at:08d}.safetensors").is_file()

    process = start(finished, student, out, "--resume")
    wait_for_step(out, stopped_at + 60, process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    kept = sorted((out / "checkpoints").glob("step-*.safetensors"))[-1]
    reached = max(event.get("step", 0) for event in read_events(out / "events.jsonl"))
    assert reached - int(kept.stem.removeprefix("step-")) <= 7

    process = start(finished, student, out, "--resume")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    whole = tmp_path / "whole"
    config = load_train_config(None, SETTINGS)
    train(TrainRequest(labels=finished, student=student, out=whole, config=config, threads=1), Silent())
    digests = [hashlib.sha256((folder / "prompts.safetensors").read_bytes()).hexdigest() for folder in (out, whole)]
    assert digests[0] == digests[1]
    losses = [
        [e["loss"] for e in read_events(folder / "events.jsonl") if e["event"] == "step"] for folder in (out, whole)
    ]
    assert losses[0] == losses[1]


# The command in a process that sends itself a signal where `save_prompts` is called, before or after it.
IN_FINISH = """
import os, signal, sys
import teachonce.models.prompt_files as files
real, when = files.save_prompts, sys.argv.pop(1)
def save(*given):
    if when == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    real(*given)
    os.kill(os.getpid(), signal.SIGTERM)
files.save_prompts = save
from teachonce.cli.app import run
sys.exit(run(sys.argv[1:]))
"""
# One in which Ctrl-C is not ignored, as it is in what a shell starts in the background.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from teachonce.cli.app import run
sys.exit(run(sys.argv[1:]))
"""
SHORT = ["steps=30", "batch_size=16", "checkpoint_every=7", "log_every=1", "seed=3"]


def as_user(code: str, before: list[str], labels: Path, student: str, out: Path, steps: int) -> subprocess.Popen[bytes]:
    """`teachonce train` behind a few lines of Python."""
    settings = [word for setting in (*SHORT, f"steps={steps}", "threads=1") for word in ("--set", setting)]
    command = [*before, "train", str(labels), "--student", student, "--out", str(out), *settings]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def resumed(labels: Path, student: str, out: Path, steps: int) -> bytes:
    """The prompts once the run has gone on to its end; nothing of a lock stays."""
    config = load_train_config(None, [*SHORT, f"steps={steps}"])
    train(TrainRequest(labels=labels, student=student, out=out, config=config, threads=1, resume=True), Silent())
    assert not (out / LOCK).exists()
    return (out / "prompts.safetensors").read_bytes()


def uninterrupted(labels: Path, student: str, out: Path, steps: int) -> bytes:
    """The prompts of a run that nobody stopped."""
    config = load_train_config(None, [*SHORT, f"steps={steps}"])
    train(TrainRequest(labels=labels, student=student, out=out, config=config, threads=1), Silent())
    return (out / "prompts.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_while_the_result_is_written_costs_nothing(
    when: str, finished: Path, student: str, tmp_path: Path
) -> None:
    """Exit 143 without results.json, before and after the prompts; resumed, they have equal bits."""
    out = tmp_path / "run"
    process = as_user(IN_FINISH, [when], finished, student, out, 30)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors.decode()
    assert (out / "prompts.safetensors").exists() == (when == "after") and not (out / "results.json").exists()
    assert resumed(finished, student, out, 30) == uninterrupted(finished, student, tmp_path / "whole", 30)
    assert (out / "results.json").is_file()


@pytest.mark.slow
def test_ctrl_c_in_training_checkpoints_and_exits_130(finished: Path, student: str, tmp_path: Path) -> None:
    """The step is finished and kept; resumed, the prompts have equal bits."""
    out = tmp_path / "run"
    process = as_user(INTERRUPTIBLE, [], finished, student, out, 300)
    wait_for_step(out, 12, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    reached = max(event.get("step", 0) for event in read_events(out / "events.jsonl"))
    assert (out / "checkpoints" / f"step-{reached:08d}.safetensors").is_file() and reached < 300
    assert resumed(finished, student, out, 300) == uninterrupted(finished, student, tmp_path / "whole", 300)


class Stopped(BaseException):
    """What the handler of the process raises."""


def test_a_signal_while_held_out_samples_are_measured_costs_one_step(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the question of this step: the next step is done and checkpointed; resumed, the log is whole."""
    settings = ["steps=6", "batch_size=16", "checkpoint_every=100", "held_out=0.3", "evaluate_every=1", "log_every=1"]
    config = load_train_config(None, settings)

    def stop(number: int, frame: object) -> None:
        raise Stopped

    def measure(trainer: Trainer) -> HeldOutScore:
        if not any(tmp_path.glob("sent")):
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer)

    real = held_out.measure
    first = TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=config, threads=1)
    monkeypatch.setattr("teachonce.stages.train.steps.measure", measure)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            train(
                TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=config, threads=1), Silent()
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].stem == "step-00000002"
    train(replace(first, resume=True), Silent())
    measured = [e["step"] for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "held_out"]
    assert measured == [1, 2, 3, 4, 5, 6]
