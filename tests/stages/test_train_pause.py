"""A run that is paused leaves what it would be there, and resumed it ends with the same bytes and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from train_runs import config, run, steps_of

from teachonce.core.progress import Silent
from teachonce.errors import UsageError
from teachonce.models.prompt_files import load_prompts
from teachonce.runs.folder import RunFolder
from teachonce.runs.results import RunResults
from teachonce.stages.train import Pause, TrainRequest, train

KEYS = ("steps=8", "held_out=0.3", "evaluate_every=8", "checkpoint_every=3")


def results_of(folder: Path) -> RunResults:
    """What lies in a folder."""
    results = RunFolder(folder).read_results()
    assert results is not None
    return results


def test_a_pause_changes_no_bit_and_leaves_what_the_run_is_then(finished: Path, student: str, tmp_path: Path) -> None:
    whole = run(finished, student, tmp_path / "whole", *KEYS)
    request = TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=config(*KEYS), threads=1)
    for step in (3, 5):
        pause = Pause(step, tmp_path / f"at-{step}")
        train(replace(request, pause=pause, resume=step > 3), Silent())
        assert not RunFolder(tmp_path / "run").results.exists()
        rung = results_of(pause.out)
        assert rung.steps == step and rung.held_out_top1 is not None
        assert load_prompts(pause.out).tensors_digest == rung.prompts_digest
    ended = train(replace(request, resume=True), Silent())
    assert ended.prompts_digest == whole.prompts_digest and ended.held_out_top1 == whole.held_out_top1
    assert ended.final_loss == whole.final_loss and steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
    with pytest.raises(UsageError, match="cannot be paused after step 5"):
        train(replace(request, pause=Pause(5, tmp_path / "late"), resume=True), Silent())
    assert not (tmp_path / "late").exists()
