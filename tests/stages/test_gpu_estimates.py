"""`train --dry-run` and `plan` say what a GPU would need, without one, and write nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train_runs import config
from worlds import CHUNK_ROWS, World, files_of, request_for

from teachonce.core.progress import Silent
from teachonce.errors import TeachOnceError
from teachonce.memory import gpus
from teachonce.memory.gpus import GIB, on_a_gpu, smallest_gpu
from teachonce.phrases import options_of
from teachonce.stages.plan import PlanRequest, plan
from teachonce.stages.train import TrainDryRun, TrainRequest, dry, dry_run


def tried(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> TrainDryRun:
    """A dry run."""
    request = TrainRequest(labels=labels, student=student, out=out, config=config(*overrides), threads=1, **options)
    return dry_run(request, Silent())


def test_a_dry_run_says_what_a_step_needs_and_writes_nothing(finished: Path, student: str, tmp_path: Path) -> None:
    before = [(path, path.stat().st_mtime_ns) for path in files_of(finished)]
    result = tried(finished, student, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert before == [(path, path.stat().st_mtime_ns) for path in files_of(finished)]
    assert (result.steps, result.classes, result.precision) == (18, 8, "bf16")
    assert result.names == result.names_at_once == 7, "two classes share a name"
    assert gpus.BESIDE < result.gpu_bytes < gpus.BESIDE + GIB and result.smallest_gpu == 8
    assert result.fits and result.exit_code == 0 and result.gpu_free is None
    assert "on a GPU a step in bf16 needs about 0.6 GiB at its peak" in result.memory
    assert "all 7 names in one pass" in result.memory and "fits on GPUs of 8 GiB and more" in result.memory


@pytest.mark.slow  # the same of names is in tests/memory
def test_images_of_a_small_step_are_advised_where_they_help(
    finished: Path, student: str, world: World, tmp_path: Path
) -> None:
    """The key is one of the configuration, and with it less is needed."""
    result = tried(finished, student, tmp_path / "run", "tower=image", "batch_size=64", root=world.root)
    (smaller,) = result.smaller
    assert (smaller.key, smaller.value) == ("micro_batch", 16) and smaller.gpu_bytes < result.gpu_bytes
    assert [option.name for option in options_of(result.memory)] == ["micro_batch"]
    again = tried(
        finished, student, tmp_path / "run", "tower=image", "batch_size=64", "micro_batch=16", root=world.root
    )
    assert again.gpu_bytes == smaller.gpu_bytes


def test_a_gpu_that_is_too_small_is_exit_6(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry, "free_of", lambda device: GIB // 4)
    result = tried(finished, student, tmp_path / "run")
    assert not result.fits and result.exit_code == 6 and "0.2 GiB free, so it does not fit" in result.memory


def test_a_dry_run_refuses_what_the_run_would(finished: Path, student: str, tmp_path: Path) -> None:
    """A store that cannot serve the config, a folder of something else, a run that is there."""
    with pytest.raises(TeachOnceError, match="no image embeddings"):
        tried(finished, student, tmp_path / "run", "targets=embedding")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(TeachOnceError):
        tried(finished, student, tmp_path / "other")


def test_the_command_prints_it(
    finished: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from teachonce.cli.app import run

    arguments = ["train", str(finished), "--student", student, "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert run([*arguments, "--set", "steps=3", "--set", "threads=1", "--set", "warmup_steps=1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"] == 3 and document["gpu_bytes"] > 0 and "on a GPU a step" in document["memory"]


def test_an_estimate_is_about_no_folder_but_a_run_and_what_goes_on_are(
    finished: Path, student: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teachonce.cli.app import run

    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(finished), "--student", student, "--set", "threads=1"]
    assert run([*arguments, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["out"] is None and document["gpu_bytes"] > 0 and not list(tmp_path.iterdir())
    assert run(arguments) == run([*arguments, "--dry-run", "--resume"]) == 2
    assert capsys.readouterr().err.count("Missing option '--out'") == 2


def test_a_plan_estimates_gpu_memory_where_there_is_no_gpu(
    world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    request = request_for(world, tmp_path / "a.zarr", teacher, students=(student,), top_k=5, chunk_rows=CHUNK_ROWS)
    result = plan(PlanRequest(teach=request, seconds=0.5), Silent())
    (estimate,) = [e for e in result.estimates if e.what == "GPU memory"]
    assert 0 < estimate.low < GIB and estimate.high == on_a_gpu(round(estimate.low))
    assert result.fits and "it fits on GPUs of 8 GiB and more" in result.gpu
    assert plan(PlanRequest(teach=request, rate=5.0), Silent()).gpu.startswith("not estimated")


def test_sizes_of_gpus() -> None:
    assert [smallest_gpu(n * GIB) for n in (1, 8, 9, 80, 300)] == [8, 8, 12, 80, None]
