"""ablate over random splits of classes, measured on rows of the store: what is trained on, what is counted, pairing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from grids import BASE, run, write
from worlds import IDS, NAMES, Notes, World

from teachonce.errors import DataError, UsageError
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import load_prompts
from teachonce.reports.folder import read_folder
from teachonce.reports.tables import measures
from teachonce.rows.order import held_out_samples
from teachonce.runs.grid_folder import GridFolder
from teachonce.search.splits import split_classes

SHARE = 0.4
SPLIT = f"[splits]\nunseen = {SHARE}\n"
AXES = '[axes]\nseed = [0, 1]\n"data.split" = [1, 2]\n'


def stored(name: str, **keys: str) -> str:
    """An [[evaluate]] table on rows of the store."""
    given = {"name": name, "manifest": "store"} | keys
    return "[[evaluate]]\n" + "".join(f'{key} = "{value}"\n' for key, value in given.items())


THREE = (
    stored("trained", classes="split:trained")
    + stored("unseen", classes="split:unseen")
    + stored("unseen-among-all", classes="split:unseen", among="split:all")
)
CHOOSE = "[choose]\nweights = {trained = 1, unseen = 1, unseen-among-all = 2}\n"


@pytest.fixture(scope="module")
def done(finished: Path, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished grid of two splits and two seeds; no folder of images is given anywhere."""
    folder = tmp_path_factory.mktemp("splits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHONCE_CACHE", str(folder / "cache"))
        text = BASE.replace("held_out = 0.2", "held_out = 0.3") + AXES + SPLIT + THREE + CHOOSE
        result = run(write(folder / "grid.toml", text), finished, student, folder / "out")
        assert result.cells["finished"] == 4 and result.exit_code == 0
        yield folder / "out"


def document(file: Path) -> Any:
    """A JSON file."""
    return json.loads(file.read_text())


def plain(store: Path, student: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and the student's features of all rows, read with zarr alone."""
    root = zarr.open_group(store, mode="r")
    (group,) = (root["students"][name] for name in root["students"])
    return np.asarray(root["label"][:]), np.asarray(group["features"][:]).astype(np.float64)


def accuracy(images: np.ndarray[Any, Any], labels: list[str], classes: Any, ids: tuple[str, ...]) -> float:
    """Brute force in float64; classes of one name share the credit."""
    vectors = np.asarray(classes, np.float64)
    names = [NAMES[IDS.index(class_id)].lower() for class_id in ids]
    credits = []
    for image, label in zip(images, labels, strict=True):
        best = names[int((vectors @ image).argmax())]
        wanted = NAMES[IDS.index(label)].lower()
        credits.append((best == wanted) / names.count(wanted))
    return float(np.mean(credits))


def test_a_cell_trains_on_the_trained_classes_of_its_split_alone(done: Path) -> None:
    for cell in document(done / "grid.json")["cells"]:
        selections = [document(file) for file in (done / "selections").glob("*.json")]
        parts = split_classes(IDS, SHARE, cell["split"])
        assert any(tuple(selection["rule"]["classes"]) == parts.trained for selection in selections)
        assert cell["name"].endswith(f"split={cell['split']} seed={cell['seed']}")
        assert "data.split" not in cell["changes"]
    assert len(list((done / "selections").glob("*.json"))) == 2
    assert {cell["group"] for cell in document(done / "grid.json")["cells"]} == {"base"}


def test_figures_are_those_of_brute_force_on_rows_that_were_not_trained_on(
    done: Path, finished: Path, student: str
) -> None:
    label, features = plain(finished, student)
    rows = np.arange(len(label))
    for cell in document(done / "grid.json")["cells"]:
        parts = split_classes(IDS, SHARE, cell["split"])
        apart = held_out_samples(cell["seed"], rows, 0.3)
        prompts = load_prompts(done / "cells" / cell["digest"]).bound_to(load_clip(student))
        for name, classes, ids in (
            ("trained", parts.trained, parts.trained),
            ("unseen", parts.unseen, parts.unseen),
            ("unseen-among-all", parts.unseen, IDS),
        ):
            wanted = [IDS[number] in classes for number in label] & (apart | (name != "trained"))
            result = document(done / "cells" / cell["digest"] / "evaluations" / f"{name}.json")
            assert result["n"] == wanted.sum() and result["classes"] == len(ids)
            vectors = prompts.classifier([NAMES[IDS.index(class_id)] for class_id in ids]).numpy()
            expected = accuracy(features[wanted], [IDS[number] for number in label[wanted]], vectors, ids)
            assert result["top1"] == pytest.approx(expected, abs=1e-6)
            assert result["baseline"]["top1"] >= 0 and result["split"] == "train"


def test_a_report_takes_splits_and_seeds_together(done: Path) -> None:
    folder = read_folder(done)
    assert not folder.unusable
    tables = {table.key: table for table in measures(folder)}
    for name in ("trained", "unseen", "unseen-among-all"):
        results = [
            document(done / "cells" / cell["digest"] / "evaluations" / f"{name}.json")
            for cell in document(done / "grid.json")["cells"]
        ]
        line = tables[name].line("base")
        assert line is not None and line.summary.n == 4 and line.template is not None
        assert line.summary.mean == pytest.approx(np.mean([result["top1"] for result in results]))
        over = [result["top1"] - result["baseline"]["top1"] for result in results]
        assert line.template.difference == pytest.approx(np.mean(over))


@pytest.mark.slow
def test_a_finished_grid_is_left_as_it_is_and_another_share_makes_other_cells(
    done: Path, finished: Path, student: str, tmp_path: Path
) -> None:
    text = (done.parent / "grid.toml").read_text()
    assert run(done.parent / "grid.toml", finished, student, done).cells["skipped"] == 4
    text = text[text.index("[base]") :].replace(f"unseen = {SHARE}", "unseen = 0.2")
    other = write(tmp_path / "grid.toml", text)
    result = run(other, finished, student, tmp_path / "out", dry_run=True)
    assert result.to_run == 4 and len(result.derived) == 2


def refused(text: str, finished: Path, student: str, tmp_path: Path, root: Path) -> str:
    """What a grid is refused with, and what to do."""
    with pytest.raises((UsageError, DataError)) as problem:
        run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out", dry_run=True, root=root)
    assert not (tmp_path / "out").exists()
    return f"{problem.value.message} {problem.value.hint}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE + AXES, "does not say how classes are split"),
        (BASE + SPLIT, "numbered from 1"),
        (BASE + AXES + SPLIT.replace("0.4", "1.5"), "unseen"),
        (BASE + AXES + SPLIT + '[data]\nclasses = "base"\n', "both say which classes"),
        (BASE + stored("x", classes="split:unseen"), "add [splits]"),
        (BASE + AXES + SPLIT + stored("x", split="train"), "split does nothing"),
        (BASE.replace("held_out = 0.2", "held_out = 0") + stored("x"), "set held_out"),
        (BASE + stored("x", store="nowhere.zarr"), "there is no"),
        (BASE + 'tower = "both"\n' + stored("x"), "changes images"),
        (BASE + stored("x").replace('manifest = "store"', 'manifest = "demo"\nstore = "x.zarr"'), "only"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    text: str, said: str, finished: Path, student: str, tmp_path: Path, world: World
) -> None:
    assert said in refused(text, finished, student, tmp_path, world.root)


def test_another_store_is_measured_whole_and_names_of_all_its_classes_compete(
    finished: Path, student: str, tmp_path: Path
) -> None:
    """The same photos under another name are still the same photos: of trained classes the held-out ones count."""
    text = BASE + stored("own") + stored("again", store=str(finished)) + stored("two", classes="novel", among="all")
    result = run(write(tmp_path / "grid.toml", text), finished, student, tmp_path / "out", Notes())
    (cell,) = GridFolder(tmp_path / "out").read_grid().cells
    first, again, two = (
        document(tmp_path / "out/cells" / cell.digest / f"evaluations/{name}.json") for name in ("own", "again", "two")
    )
    assert result.exit_code == 0 and first["n"] == again["n"] < 30 and first["top1"] == again["top1"]
    assert two["classes"] == 8 and two["n"] < first["n"]
