"""Runs and grids whose config.toml is from before there were tables go on as they began."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import grids
import pytest
import tomli_w
from worlds import Notes

from teachonce.core.progress import Silent
from teachonce.errors import FingerprintError
from teachonce.recipe.config_file import load_train_config
from teachonce.reports.folder import read_folder
from teachonce.stages.train import TrainRequest, train

SETTINGS = ("steps=6", "batch_size=16", "checkpoint_every=3", "log_every=1", "warmup_steps=2", "tail=to-label")


def flatten(file: Path) -> None:
    """Write a config.toml as versions without tables did."""
    file.write_text(tomli_w.dumps(load_train_config(file).to_dict()), encoding="utf-8")


def request(labels: Path, student: str, out: Path, *more: str, resume: bool = False) -> TrainRequest:
    """A short run, one thread."""
    config = load_train_config(None, [*SETTINGS, *more])
    return TrainRequest(labels=labels, student=student, out=out, config=config, resume=resume, threads=1)


@pytest.fixture
def flat(finished: Path, student: str, tmp_path: Path) -> Path:
    """A finished run with a flat config.toml."""
    train(request(finished, student, tmp_path / "run"), Silent())
    assert "[loss]" in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    flatten(tmp_path / "run" / "config.toml")
    return tmp_path / "run"


def test_a_run_with_a_flat_config_is_resumed_to_the_same_prompts(flat: Path, finished: Path, student: str) -> None:
    """It was stopped after its first checkpoint; its config.toml is left as it was."""
    whole, config = (flat / "prompts.safetensors").read_bytes(), (flat / "config.toml").read_bytes()
    for name in ("prompts.safetensors", "prompts.json", "results.json", "checkpoints/step-00000006.safetensors"):
        (flat / name).unlink()
    result = train(request(finished, student, flat, resume=True), Silent())
    assert result.prompts_digest == hashlib.sha256(whole).hexdigest()
    assert (flat / "prompts.safetensors").read_bytes() == whole
    assert (flat / "config.toml").read_bytes() == config
    with pytest.raises(FingerprintError, match="tail: there 'to-label', here 'ghost'"):
        train(request(finished, student, flat, "tail=ghost", resume=True), Silent())


def test_a_run_with_a_flat_config_is_reported_beside_one_with_tables(flat: Path, finished: Path, student: str) -> None:
    """They are one setting with two seeds."""
    both = flat.parent / "both"
    both.mkdir()
    shutil.move(flat, both / "flat")
    train(request(finished, student, both / "tables", "seed=1"), Silent())
    folder = read_folder(both)
    assert not folder.unusable and [[run.seed for run in group.runs] for group in folder.groups] == [[0, 1]]


def test_a_finished_grid_with_flat_configs_runs_no_cell_again(finished: Path, student: str, tmp_path: Path) -> None:
    """Its cells are found by their digests, also where the grid is now written with tables."""
    out = tmp_path / "out"
    grid = grids.write(tmp_path / "grid.toml", "[base]\nsteps = 2\nbatch_size = 8\n[axes]\nseed = [0, 1]\n")
    grids.run(grid, finished, student, out)
    before = grids.prompts_of(out)
    for file in out.glob("cells/*/config.toml"):
        flatten(file)
    log = out / "events.jsonl"
    lines = len(log.read_text(encoding="utf-8").splitlines())
    grids.write(grid, "[base.loop]\nsteps = 2\nbatch_size = 8\n[axes.loop]\nseed = [0, 1]\n")
    grids.run(grid, finished, student, out, Notes())
    events = [json.loads(line)["event"] for line in log.read_text(encoding="utf-8").splitlines()[lines:]]
    assert "cell_start" not in events and len(before) == 2 and grids.prompts_of(out) == before
