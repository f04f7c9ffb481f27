"""`benchmarks/gpu.py` is ready for the day that a GPU is there: its dry run passes here, and its time is bounded."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from worlds import inline_tasks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="`pytest -m gpu` runs in the script itself")


@pytest.fixture
def script(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with its folder on the path as when it is run."""
    monkeypatch.setattr(sys, "path", [str(project / "benchmarks"), *sys.path])
    return importlib.import_module("gpu")


def test_every_part_of_the_dry_run_passes_on_a_cpu(script: ModuleType, tmp_path: Path) -> None:
    """Each part writes a table, and none fails; only what there is no GPU for is left out, and says so."""
    written: list[str] = []
    bench = script.Bench(torch.device("cpu"), script.TINY, tmp_path, True)
    parts = [part for part in script.PARTS if part != "tests"]  # pytest in pytest: that part only collects in a dry run
    with inline_tasks():
        sound = script.report(bench, parts, written.append)
    text = "\n".join(written)
    assert sound and len(written) == len(parts), text
    assert "| bytes scaled on the device equal the CPU's | yes |" in text
    assert "| top 10 with ties in every row equals the CPU's | yes |" in text
    assert text.count("| yes |") == 6, "two of pixels, four of equal runs"
    assert "| rows | 12 of 12 |" in text
    assert "not tried: no GPU" in text
    for what in ("sampled | a:", "all | a:", "all | b: layouts", "sampled | d:", "all | d:"):
        (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| bf16 | {what}")]
        kernels, without = (int(cell.strip(" |")) for cell in row[-2:])
        assert without > kernels, row


def test_a_part_that_fails_is_said_and_the_others_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of an hour on a rented machine must not end with its first surprise."""

    def broken(bench: object, clock: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setitem(script.PARTS, "pixels", broken)
    written: list[str] = []
    bench = script.Bench(torch.device("cpu"), script.TINY, tmp_path, True)
    assert not script.report(bench, ["pixels", "facts"], written.append)
    assert "no kernel image is available" in written[0] and "| device | cpu |" in written[1]


def test_all_parts_together_take_eight_minutes_at_most(script: ModuleType) -> None:
    """Every part has its seconds."""
    assert script.SECONDS.keys() == script.PARTS.keys() and sum(script.SECONDS.values()) <= 480
