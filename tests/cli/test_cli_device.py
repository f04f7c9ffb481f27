"""--device on every command that computes: it reaches the stage, and a name that is none is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_stubs
from train_runs import config
from worlds import Notes

from teachonce.cli.app import describe
from teachonce.core.devices import DeviceFault
from teachonce.stages.train import TrainRequest, train

LINES = {
    "teach": "teach m --labels x.zarr --teacher T",
    "plan": "plan m --labels x.zarr --teacher T",
    "train": "train x.zarr --student S --out run",
    "evaluate": "evaluate --student S --manifest m",
    "protocol": "evaluate --student S --protocol p",
    "relabel": "relabel a.zarr --labels b.zarr",
    "merge": "merge a.zarr b.zarr --labels x.zarr",
    "ablate": "ablate g.toml --labels x.zarr --student S --out g",
    "verify": "verify x.zarr --teacher T --root data",
    "export": "export run --out shared --classes c.tsv",
}
STUBBED = (0, 5)  # results of stubs have bad news to tell, some of them


def device_of(request: Any) -> str:
    """The device in a request, wherever it is kept there."""
    inner = getattr(request, "teach", request)
    for holder in (inner, getattr(inner, "computing", None), getattr(inner, "work", None)):
        if hasattr(holder, "device"):
            return str(holder.device)
    raise AssertionError(f"{type(request).__name__} has no device")


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_device_reaches_the_stage(name: str, teachonce_here: Callable[..., Any], stubs: stage_stubs.Stubs) -> None:
    assert teachonce_here(*LINES[name].split()).code in STUBBED
    assert device_of(stubs.requests[-1]) == "auto"
    for device in ("cpu", "mps", "cuda", "cuda:1"):
        assert teachonce_here(*LINES[name].split(), "--device", device).code in STUBBED
        assert device_of(stubs.requests[-1]) == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "0"])
def test_what_names_no_device_is_refused(device: str, teachonce_here: Callable[..., Any]) -> None:
    ended = teachonce_here(*LINES["train"].split(), "--device", device)
    assert ended.code == 2 and f"--device {device}" in ended.err and "cuda:1" in ended.err


def test_a_device_is_obeyed_or_missed(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cpu trains and says so; a GPU that is not there is exit 6 with advice in flags, and nothing is left behind."""
    monkeypatch.setattr("teachonce.core.devices.visible_gpus", lambda: 0)
    asked = TrainRequest(labels=finished, student=student, out=tmp_path / "run", config=config("steps=2"), threads=1)
    with pytest.raises(DeviceFault) as caught:
        train(dataclasses.replace(asked, device="cuda:1"), Notes())
    failure = describe(caught.value)
    assert failure.exit_code == 6 and "cuda:1" in failure.message and "--device auto" in failure.hint
    assert not asked.out.exists()
    notes = Notes()
    train(dataclasses.replace(asked, device="cpu"), notes)
    assert "computing on cpu in fp32; threads: 1 (as asked)" in notes.lines
