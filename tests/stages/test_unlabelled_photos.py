"""Photos in a folder, without classes: soft labels of the names that are given, and training from these alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from worlds import World

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.data.index import build_index, collect
from teachonce.data.manifests import load_manifest
from teachonce.data.reader import ImageReader
from teachonce.errors import DataError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.verify import VerifyRequest, verify

SETTINGS = ("supervision=soft", "steps=6", f"batch_size={worlds.PHOTOS}", "warmup_steps=1", "log_every=1")


def scattered(world: World, root: Path) -> Path:
    """The world's photos in one folder, every third of them in folders below it whose names mean nothing."""
    for number, (name, data) in enumerate(sorted(world.photos.items())):
        folder = root if number % 3 else root / "roll 7" / "best"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def photos(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder."""
    return scattered(world, tmp_path_factory.mktemp("photos") / "album")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vocabulary as a person gives it."""
    file = tmp_path_factory.mktemp("names") / "names.tsv"
    file.write_text("".join(f"n{number:02d}\t{name}\n" for number, name in enumerate(worlds.NAMES)), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def unlabelled(photos: Path, names: str, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of them."""
    path = tmp_path_factory.mktemp("unlabelled") / "album.zarr"
    request: dict[str, Any] = {"manifest": "photo-folder", "root": photos, "vocabulary": names, "top_k": 5}
    worlds.teach_inline(World(photos, {}), path, teacher, students=(student,), **request)
    return path


def by_name(store: Path) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Every stored value of each photo, by the last part of its key."""
    keys = worlds.keys_of(store)
    arrays = {name: values for name, values in worlds.all_arrays(store).items() if len(values) == len(keys)}
    short = [key.rpartition("/")[2].removesuffix(".jpg") for key in keys]
    return {name: {column: values[row] for column, values in arrays.items()} for row, name in enumerate(short)}


def test_photos_at_any_depth_are_samples_without_a_class_and_nothing_else_is(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "album"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    for place in ("a.jpg", "deep/er/b.PNG", "deep/er/notes.txt", ".DS_Store", "deep/a.jpg"):
        (root / place).write_bytes(place.encode())
    os.symlink(root / "deep", root / "again")
    manifest = load_manifest("photo-folder")
    collected = collect(manifest, "train", root, Silent(), stop=True)
    index = collected.index
    with ImageReader(index, root) as reader:
        read = {index.key(row): reader.read(row) for row in range(len(index))}
    assert read == {"a.jpg": b"a.jpg", "deep/a.jpg": b"deep/a.jpg", "deep/er/b.PNG": b"deep/er/b.PNG"}
    assert index.label.tolist() == [-1, -1, -1]
    assert collected.passed_over.counts == {"leftovers": 1, "links": 1, "other_endings": 1}
    with pytest.raises(DataError, match="holds no image"):
        build_index(manifest, "train", root / "empty", Silent())


def test_without_names_there_is_nothing_to_teach(photos: Path, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="come without classes") as caught:
        worlds.teach_inline(World(photos, {}), tmp_path / "x.zarr", teacher, manifest="photo-folder", root=photos)
    assert "vocabulary" in caught.value.hint
    assert not (tmp_path / "x.zarr").exists()


def test_they_are_taught_as_the_same_photos_are_whose_classes_are_known(
    unlabelled: Path, world: World, teacher: str, student: str, names: str, tmp_path: Path
) -> None:
    """Every stored value of every photo, up to the rounding of another batch; and no row has a label."""
    known: dict[str, Any] = {"manifest": world.manifest("folders"), "vocabulary": names, "top_k": 5}
    worlds.teach_inline(world, tmp_path / "known.zarr", teacher, students=(student,), **known)
    ours, theirs = by_name(unlabelled), by_name(tmp_path / "known.zarr")
    assert ours.keys() == theirs.keys() and len(ours) == len(world.photos)
    columns = [column for column, value in ours[next(iter(ours))].items() if np.ndim(value)]
    assert len(columns) >= 3, "class ids, what is kept of their probabilities, and features"
    for name, values in ours.items():
        for column in columns:
            pair = (x[column].astype(np.float64) for x in (values, theirs[name]))
            assert np.allclose(*pair, rtol=2e-3, atol=2e-3), (name, column)
    store = LabelStore.open(unlabelled)
    assert len(store.label_classes()) == 0 and len(store.vocabulary()) == len(worlds.NAMES)
    labels = np.concatenate([store.index_of_chunk(chunk).label for chunk in range(store.layout.chunks)])
    assert (labels == -1).all()
    assert not verify(VerifyRequest(labels=unlabelled), Silent()).faults


def test_soft_labels_alone_train_from_them_and_hard_ones_are_missed(
    unlabelled: Path, student: str, tmp_path: Path
) -> None:
    config = load_train_config(None, [*SETTINGS, "soft_loss=symmetric"])
    request = TrainRequest(labels=unlabelled, student=student, out=tmp_path / "run", config=config, threads=1)
    assert np.isfinite(train(request, Silent()).final_loss)
    steps = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "step"]
    assert steps[-1]["soft"] < steps[0]["soft"] and "hard" not in steps[0]
    config = load_train_config(None, [*SETTINGS, "supervision=hard+soft"])
    with pytest.raises(DataError, match="there are no hard labels to train on"):
        train(
            TrainRequest(labels=unlabelled, student=student, out=tmp_path / "hard", config=config, threads=1), Silent()
        )
