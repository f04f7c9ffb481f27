"""A device without room, in every place where one computes: exit 6, the numbers, and the key that helps there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grids import BASE, write
from grids import run as run_grid
from train_runs import run
from worlds import World, teach_inline

from teachonce.core.devices import DeviceFault
from teachonce.core.progress import Silent
from teachonce.evaluation.choice import Entrant, SetChoice, Work
from teachonce.models.clip import LoadedClip, libraries_explained, load_clip
from teachonce.stages.evaluate import EvaluateRequest, evaluate
from teachonce.training.trainer import Trainer

SAID = (
    "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB is free."
)
NUMBERS = "3.0 GiB more were needed, 1.0 GiB of 8.0 GiB are free"


def full(*args: Any, **options: Any) -> Any:
    """What a device without room does."""
    raise torch.OutOfMemoryError(SAID)


def require_advice(fault: DeviceFault, *keys: str) -> None:
    """The fault has the numbers, the exit code and the keys."""
    assert fault.exit_code == 6 and NUMBERS in fault.message
    assert all(f"{key}=" in fault.hint for key in keys), fault.hint


def test_while_a_model_is_loaded() -> None:
    with (
        pytest.raises(DeviceFault, match="'M' could not load") as caught,
        libraries_explained("M", "load"),
    ):
        full()
    require_advice(caught.value)
    assert "nvidia-smi" in caught.value.hint


def test_in_a_step_of_training(finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "begin", full)
    with pytest.raises(DeviceFault) as caught:
        run(finished, student, tmp_path / "run")
    require_advice(caught.value, "class_chunk", "micro_batch", "batch_size")


def test_while_images_are_taught(world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teachonce.teaching.chunk._features", full)
    with pytest.raises(DeviceFault) as caught:
        teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5)
    require_advice(caught.value, "batch_size", "class_tile")


def test_while_images_are_evaluated(world: World, student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model was loaded while there was room."""
    clip = load_clip(student)
    monkeypatch.setattr("teachonce.evaluation.contender.load_clip", lambda spec, device: clip)
    monkeypatch.setattr("teachonce.evaluation.features.embedding_width", lambda clip: 12)
    monkeypatch.setattr(LoadedClip, "encode_images", full)
    data = SetChoice(manifest=str(world.manifest()), root=world.root)
    request = EvaluateRequest(entrant=Entrant(student=student), data=data, work=Work(cache=False, threads=1))
    with pytest.raises(DeviceFault) as caught:
        evaluate(request, Silent())
    require_advice(caught.value, "batch_size")


def test_in_a_cell_of_a_grid(finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell has failed with these words, and the next one would run."""
    monkeypatch.setattr(Trainer, "begin", full)
    result = run_grid(write(tmp_path / "grid.toml", BASE), finished, student, tmp_path / "out")
    assert result.cells["failed"] == 1 and NUMBERS in result.failures[0].message
    assert "class_chunk=" in result.failures[0].hint
