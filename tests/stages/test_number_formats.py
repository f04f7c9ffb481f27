"""precision = auto: what it becomes is written down, and what is continued keeps what it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grids
import pytest
import torch
from train_runs import killed_before, run, steps_of
from worlds import World, copy_store, teach_inline

from teachonce.errors import FingerprintError
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.clip import resolved_precision
from teachonce.runs.folder import stored_value
from teachonce.runs.grid_folder import GridFolder

Gpu = Callable[[bool], None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Says whether the device, which is the CPU all the time, has bfloat16."""

    def has(bf16: bool) -> None:
        for module in ("core.devices", "models.clip"):
            monkeypatch.setattr(f"teachonce.{module}.has_bf16", lambda device: bf16)

    return has


def formats(store: Path) -> set[str]:
    """The number formats in the fingerprints of a store."""
    return {group.fingerprint["precision"] for group in LabelStore.open(store).groups.values()}


def test_auto_is_fp32_on_this_machine_and_bf16_where_the_device_has_it(gpu: Gpu) -> None:
    assert resolved_precision("auto", "cpu") == "fp32"
    gpu(True)
    assert resolved_precision("auto", "cpu") == "bf16" and resolved_precision("fp16", "cpu") == "fp16"


def test_a_store_keeps_the_number_format_that_it_was_begun_with(
    gpu: Gpu, world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """Begun on a GPU and continued on another machine: the fingerprints say bf16 throughout; fp32 is refused."""
    store = tmp_path / "a.zarr"
    gpu(True)
    teach_inline(world, store, teacher, top_k=5)
    assert formats(store) == {"bf16"}
    gpu(False)
    assert teach_inline(world, store, teacher, top_k=5).chunks_written == 0
    teach_inline(world, store, teacher, students=(student,), top_k=5)
    assert formats(store) == {"bf16"} and len(LabelStore.open(store).groups) == 2
    with pytest.raises(FingerprintError, match="precision: stored 'bf16', asked for 'fp32'"):
        teach_inline(world, store, teacher, top_k=5, precision="fp32")


def test_a_store_of_earlier_versions_goes_on_in_fp32_on_a_gpu(
    gpu: Gpu, world: World, teacher: str, finished: Path, tmp_path: Path
) -> None:
    """Their default was fp32 everywhere."""
    store = copy_store(finished, tmp_path)
    assert LabelStore.open(store).groups[LABELS].fingerprint["precision"] == "fp32"
    LabelStore.open(store, writable=True).drop(LABELS, 0)
    gpu(True)
    assert teach_inline(world, store, teacher, top_k=5).chunks_written == 1
    assert formats(store) == {"fp32"}


@pytest.mark.parametrize(("begun", "resumed"), [(True, False), (False, True)])
def test_a_run_writes_down_what_auto_became_and_goes_on_with_it(
    begun: bool, resumed: bool, gpu: Gpu, finished: Path, student: str, tmp_path: Path
) -> None:
    """Killed on one device and resumed on another: every step is that of the uninterrupted run."""
    wanted = "bf16" if begun else "fp32"
    run(finished, student, tmp_path / "whole", f"precision={wanted}")
    gpu(begun)
    with killed_before(10):
        run(finished, student, tmp_path / "run")
    gpu(resumed)
    run(finished, student, tmp_path / "run", resume=True)
    assert stored_value(tmp_path / "run", "precision") == wanted
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
    other = "fp32" if begun else "bf16"
    with pytest.raises(FingerprintError, match=f"precision: there '{wanted}', here '{other}'"):
        run(finished, student, tmp_path / "run", f"precision={other}", resume=True)


def test_cells_of_a_grid_keep_theirs(gpu: Gpu, finished: Path, student: str, tmp_path: Path) -> None:
    """A finished grid is not run again because another machine would have chosen otherwise."""
    grid, out = grids.write(tmp_path / "grid.toml", grids.BASE), tmp_path / "out"
    grids.run(grid, finished, student, out)
    gpu(True)
    assert grids.run(grid, finished, student, out, dry_run=True).to_run == 0
    stored = GridFolder(out).stored()
    assert stored is not None and {cell.config["precision"] for cell in stored.cells} == {"fp32"}
    plan = grids.run(grid, finished, student, tmp_path / "new", dry_run=True)
    assert {cell["digest"] for cell in plan.plan}.isdisjoint({cell.digest for cell in stored.cells})


@pytest.fixture(autouse=True)
def exact() -> None:
    """One thread: what is compared to the bit is computed in one order."""
    torch.set_num_threads(1)
