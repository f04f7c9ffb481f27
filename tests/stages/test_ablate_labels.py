"""ablate: the label store may vary in a grid, so that the teacher is an axis; a cell is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import worlds
from grids import BASE, prompts_of, run, write
from worlds import Notes, World

from teachonce.core.progress import Silent
from teachonce.errors import DataError, TeachOnceError, UsageError
from teachonce.labels.derived import content_id
from teachonce.labels.store import LabelStore
from teachonce.stages.relabel import RelabelRequest, relabel

PLAIN = BASE.replace("held_out = 0.2\n", "")
AXIS = PLAIN + '[axes]\nlabels = ["", "warm.zarr"]\n'


@pytest.fixture(scope="module")
def folder(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a.zarr`, and `warm.zarr` with a temperature for each row; never change it."""
    place = tmp_path_factory.mktemp("axis")
    worlds.teach_inline(world, place / "a.zarr", teacher, students=(student,), top_k=5, embeddings="int8")
    with worlds.inline_tasks():
        relabel(RelabelRequest(parent=place / "a.zarr", labels=place / "warm.zarr", entropy=1.5, threads=1), Silent())
    return place


def cells_of(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> cell, of grid.json."""
    return {cell["name"]: cell for cell in json.loads((out / "grid.json").read_text())["cells"]}


@pytest.mark.slow  # whole runs of several trainings or stores
def test_a_cell_is_what_it_would_be_from_its_store_alone(folder: Path, student: str, tmp_path: Path) -> None:
    """Name, digest and bits; shots are drawn from its own store; the grid says where and what the store was."""
    text = AXIS + "[data]\nshots = 3\n"
    grid = write(folder / "grid.toml", text)
    assert run(grid, folder / "a.zarr", student, tmp_path / "both").cells["finished"] == 2
    alone = write(folder / "alone.toml", PLAIN + "[data]\nshots = 3\n")
    for store in ("a", "warm"):
        run(alone, folder / f"{store}.zarr", student, tmp_path / store)
    both = prompts_of(tmp_path / "both")
    assert both == prompts_of(tmp_path / "a") | prompts_of(tmp_path / "warm") and len(both) == 2
    cells = cells_of(tmp_path / "both")
    warm = cells["labels=warm.zarr seed=0"]
    assert set(cells) == {"base seed=0", "labels=warm.zarr seed=0"}
    assert (warm["labels"], warm["changes"]) == (str(folder / "warm.zarr"), {"labels": "warm.zarr"})
    assert warm["content_id"] == content_id(LabelStore.open(folder / "warm.zarr"))
    assert "labels" not in cells["base seed=0"], "that of the grid"
    again = run(grid, folder / "a.zarr", student, tmp_path / "both")
    assert (again.cells["finished"], again.cells["skipped"]) == (0, 2)


@pytest.mark.slow
def test_a_store_for_a_cell_may_be_derived_from_its_own(folder: Path, student: str, tmp_path: Path) -> None:
    """More classes from embeddings: the store without them is refused by name, the one with them is derived."""
    relabel(RelabelRequest(parent=folder / "a.zarr", labels=tmp_path / "k3.zarr", top_k=3, threads=1), Silent())
    text = PLAIN + 'labels = "k3.zarr"\n[data]\ntop_k = 4\n'
    grid = write(tmp_path / "grid.toml", text)
    run(grid, folder / "a.zarr", student, tmp_path / "out")
    (made,) = (tmp_path / "out" / "stores").glob("*.zarr")
    parent = LabelStore.open(made).groups["labels"].fingerprint["parent"]
    assert parent == content_id(LabelStore.open(tmp_path / "k3.zarr"))
    text = PLAIN + f'[axes]\nlabels = ["", "{folder / "warm.zarr"}"]\n[data]\ntop_k = 7\n'
    with pytest.raises(DataError, match="1 of 2 cells cannot run") as problem:
        run(write(tmp_path / "b.toml", text), folder / "a.zarr", student, tmp_path / "b")
    assert "labels=" in problem.value.message and "relabel its parent" in problem.value.hint


def test_the_same_store_twice_is_one_run(folder: Path, student: str, tmp_path: Path) -> None:
    """Content decides, not the path."""
    notes = Notes()
    grid = write(folder / "same.toml", PLAIN + '[axes]\nlabels = ["", "a.zarr"]\n')
    result = run(grid, folder / "a.zarr", student, tmp_path / "out", notes)
    assert result.cells["finished"] == 1 and any("is the same run as" in line for line in notes.lines)


@pytest.mark.parametrize(
    ("axis", "said"),
    [('["warm.zar"]', "did you mean 'warm.zarr'"), ("[3]", "expected the path of a label store")],
)
def test_a_store_that_is_none_is_refused(axis: str, said: str, folder: Path, student: str, tmp_path: Path) -> None:
    """Before anything starts."""
    grid = write(folder / "wrong.toml", PLAIN + f"[axes]\nlabels = {axis}\n")
    with pytest.raises(UsageError, match=said):
        run(grid, folder / "a.zarr", student, tmp_path / "out")


def test_a_store_without_the_students_features_is_refused(
    world: World, teacher: str, folder: Path, student: str, tmp_path: Path
) -> None:
    """The message names the cell and the store."""
    worlds.teach_inline(world, tmp_path / "bare.zarr", teacher, top_k=5)
    grid = write(tmp_path / "grid.toml", PLAIN + '[axes]\nlabels = ["", "bare.zarr"]\n')
    with pytest.raises(TeachOnceError, match="bare.zarr holds no image features of this student"):
        run(grid, folder / "a.zarr", student, tmp_path / "out")
