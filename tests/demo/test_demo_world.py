"""The made-up world: the same bytes each time, laid out as its manifest says, nothing half-written.

It does not test that models can learn from it: test_demo_models does.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teachonce.demo import world as demo_world
from teachonce.demo.world import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    TEXTURES,
    WorldSizes,
    render_image,
    seen_classes,
    unseen_classes,
    world_classes,
    write_world,
)
from teachonce.errors import DataError, EnvironmentFault, UsageError

SMALL = WorldSizes(train=300, train_archives=3, val_per_class=1, unseen_per_class=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "world"
    write_world(root, 7, SMALL)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive}  # type: ignore[union-attr]


def test_held_out_classes_are_disjoint_and_every_word_is_seen() -> None:
    seen, unseen = seen_classes(), unseen_classes()
    assert (len(seen), len(unseen), len(world_classes())) == (256, 64, 320)
    assert not {item.name for item in seen} & {item.name for item in unseen}
    assert len({item.name for item in world_classes()}) == len({item.id for item in world_classes()}) == 320
    assert {item.colour for item in seen} == set(COLOURS)
    assert {item.texture for item in seen} == set(TEXTURES)
    assert {item.shape for item in seen} == set(SHAPES)


def test_two_writes_give_the_same_bytes_and_another_seed_gives_others(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", 7, SMALL)
    write_world(tmp_path / "other", 8, SMALL)
    again, other = contents(tmp_path / "again"), contents(tmp_path / "other")
    assert again == contents(world)
    assert other["val/d0001.tar"] != again["val/d0001.tar"]
    assert other["classes.tsv"] == again["classes.tsv"]


def test_class_lists(world: Path) -> None:
    lines = (world / "classes.tsv").read_text().splitlines()
    assert lines == [f"{item.id}\t{item.name}" for item in seen_classes()]
    assert lines[0] == "d0001\tred solid circle"
    assert (world / "unseen.tsv").read_text().splitlines() == [f"{i.id}\t{i.name}" for i in unseen_classes()]


def test_train_tars_are_webdataset(world: Path) -> None:
    tars = sorted((world / "train").iterdir())
    assert [path.name for path in tars] == ["train-0000.tar", "train-0001.tar", "train-0002.tar"]
    keys, labels = [], Counter[int]()
    for path in tars:
        entries = members(path)
        names = list(entries)
        assert len(names) == 200
        assert [name.removesuffix(".jpg") for name in names[::2]] == [n.removesuffix(".cls") for n in names[1::2]]
        for key in (name.removesuffix(".jpg") for name in names[::2]):
            label = int(entries[f"{key}.cls"])
            assert seen_classes()[label].id == key.split("_")[0]
            keys.append(key)
            labels[label] += 1
    assert len(set(keys)) == 300
    assert len(labels) == 256
    assert set(labels.values()) == {1, 2}
    assert keys != sorted(keys)  # shuffled


@pytest.mark.parametrize(("split", "count"), [("val", 1), ("unseen", 2)])
def test_class_tars(world: Path, split: str, count: int) -> None:
    classes = seen_classes() if split == "val" else unseen_classes()
    assert {path.stem for path in (world / split).iterdir()} == {item.id for item in classes}
    entries = members(world / split / f"{classes[-1].id}.tar")
    assert list(entries) == [f"{classes[-1].id}_{index:05d}.jpg" for index in range(count)]
    with Image.open(io.BytesIO(next(iter(entries.values())))) as image:
        assert (image.size, image.mode, image.format) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB", "JPEG")


def test_every_image_is_a_function_of_seed_split_class_and_index() -> None:
    item = world_classes()[100]
    first = render_image(item, 3, split="val", seed=1)
    assert first.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render_image(item, 3, split="val", seed=1))
    others = [
        render_image(item, 4, split="val", seed=1),
        render_image(item, 3, split="unseen", seed=1),
        render_image(item, 3, split="val", seed=2),
        render_image(world_classes()[101], 3, split="val", seed=1),
    ]
    assert all(not np.array_equal(first, other) for other in others)


def test_every_shape_and_texture_draws_something_of_its_own() -> None:
    """Averaged over many images, any two shapes and any two textures differ: no word falls through to another."""
    items = [item for item in world_classes() if item.colour == "red"]
    covers = {}
    for item in items:
        rng = np.random.default_rng(5)  # the same place and size for all
        alpha, paint = demo_world._object(item, rng)
        covers[item.shape, item.texture] = alpha[..., None] * paint
    pictures = list(covers.values())
    for one, picture in enumerate(pictures):
        assert all(np.abs(picture - other).mean() > 1e-3 for other in pictures[:one])


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))

    def interrupted(pixels: demo_world.Bytes) -> bytes:
        if next(calls) == 150:
            raise KeyboardInterrupt
        return b"jpeg"

    monkeypatch.setattr(demo_world, "encode_jpeg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", 0, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        write_world(tmp_path / "file" / "world", 0, SMALL)


def test_the_same_call_reuses_what_is_there(world: Path) -> None:
    before = (world / "world.json").stat().st_mtime_ns
    summary = write_world(world, 7, SMALL)
    assert summary.reused
    assert summary.images == 300 + 256 + 128
    assert (summary.seen_classes, summary.unseen_classes) == (256, 64)
    assert (world / "world.json").stat().st_mtime_ns == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    sizes = WorldSizes(train=1, train_archives=1, val_per_class=1, unseen_per_class=1)
    summary = write_world(tmp_path, 0, sizes)
    assert not summary.reused
    assert json.loads((tmp_path / "world.json").read_text())["parameters"]["train"] == 1


def test_other_parameters_are_refused_by_name(world: Path) -> None:
    with pytest.raises(DataError, match=r"other parameters: seed, train$"):
        write_world(world, 9, WorldSizes(train=310, train_archives=3, val_per_class=1, unseen_per_class=2))


def test_a_damaged_world_is_refused(tmp_path: Path) -> None:
    sizes = WorldSizes(train=1, train_archives=1, val_per_class=1, unseen_per_class=1)
    write_world(tmp_path / "world", 0, sizes)
    victim = tmp_path / "world" / "val" / "d0001.tar"
    data = bytearray(victim.read_bytes())
    data[600] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"d0001\.tar is missing or is not what was written"):
        write_world(tmp_path / "world", 0, sizes)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no demo world"):
        write_world(tmp_path, 0, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="val_per_class must be at least 1"):
        WorldSizes(val_per_class=0)
    with pytest.raises(UsageError, match="3 archives cannot be filled with 2 images"):
        WorldSizes(train=2, train_archives=3)
