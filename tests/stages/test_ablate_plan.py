"""ablate --dry-run: what it times is what the cells do, or it says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import worlds
from grids import BASE, run, write
from worlds import World

from teachonce.rows.working_set import WorkingSet
from teachonce.stages.ablate import plan as ablate_plan

PLAIN = BASE.replace("held_out = 0.2\n", "")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, names and k of every set of rows that is opened."""
    openings: list[tuple[int, int, int]] = []
    real = WorkingSet.__init__

    def noted(self: WorkingSet, *args: Any) -> None:
        real(self, *args)
        openings.append((len(self), len(self.vocabulary), self.plan.top_k))

    monkeypatch.setattr(WorkingSet, "__init__", noted)
    return openings


def test_a_share_that_holds_out_none_of_a_few_rows_is_timed(finished: Path, student: str, tmp_path: Path) -> None:
    """The rows that are timed are fewer than those of a cell: the share is the cell's affair."""
    grid = write(tmp_path / "grid.toml", PLAIN + "held_out = 0.001\n")
    plan = run(grid, finished, student, tmp_path / "out", dry_run=True)
    assert plan.seconds > 0 and "timed: 3 steps of cell 'base seed=0'" in plan.measured


def test_an_epoch_of_a_few_rows_is_none_of_a_cell(finished: Path, student: str, tmp_path: Path) -> None:
    """A warm-up that is shorter than the run may be longer than so many epochs of the rows that are timed."""
    text = PLAIN.replace("batch_size = 8", "batch_size = 2") + "epochs = 1\nwarmup = 'constant'\nwarmup_steps = 20\n"
    assert run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out", dry_run=True).seconds > 0


def test_rows_and_names_of_the_selection_are_timed(
    finished: Path, student: str, tmp_path: Path, opened: list[tuple[int, int, int]]
) -> None:
    (tmp_path / "some.tsv").write_text("n02\nn05\n")
    labels, before = worlds.copy_store(finished, tmp_path), sorted(tmp_path.rglob("*"))
    text = PLAIN + "[data]\nclasses = 'some.tsv'\ntop_k = 3\n"
    plan = run(write(tmp_path / "grid.toml", text), labels, student, tmp_path / "out", dry_run=True)
    assert plan.seconds > 0 and opened == [(20, 2, 3)]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "grid.toml"])
    opened.clear()
    text = PLAIN + "[data]\nclasses = 'some.tsv'\nall_names = true\nshots = 3\n"
    run(write(tmp_path / "grid.toml", text), labels, student, tmp_path / "out", dry_run=True)
    assert opened == [(6, 8, 5)]


def test_epochs_are_of_the_samples_that_a_cell_uses(
    finished: Path, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 samples, of which 4 are held out: two steps of 8 an epoch."""
    monkeypatch.setattr(ablate_plan, "_timed_step", lambda *given: 1.0)
    (tmp_path / "some.tsv").write_text("n02\nn05\n")
    grid = write(tmp_path / "grid.toml", BASE + "epochs = 3\n[data]\nclasses = 'some.tsv'\n")
    assert run(grid, finished, student, tmp_path / "out", dry_run=True).seconds == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\ntemplate = '{}!'\n", r"template {}!"),
        ("temperature = 3.0\n", "temperatures 1, 2, 4, 3"),
        ("[data]\ntop_k = 8\n", "top_k 8"),
    ],
)
def test_what_must_be_derived_first_is_not_timed(
    text: str, said: str, world: World, teacher: str, student: str, tmp_path: Path, opened: list[tuple[int, int, int]]
) -> None:
    """Steps on the store as it is would be steps of other names or labels."""
    worlds.teach_inline(world, tmp_path / "a.zarr", teacher, students=(student,), top_k=5, embeddings="int8")
    grid = write(tmp_path / "grid.toml", PLAIN + 'supervision = "soft"\n' + text)
    plan = run(grid, tmp_path / "a.zarr", student, tmp_path / "out", dry_run=True)
    assert plan.seconds is None and not opened
    assert "not timed" in plan.measured and said in plan.measured and "after the first cell" in plan.measured
