"""Images of a step are those that `teach` showed the student, bit for bit, in every layout; others are refused."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from PIL import Image
from worlds import PHOTOS, World, all_arrays, copy_store, encoded, keys_of

from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, ImageChangedError, IncompleteError, IntegrityError, TeachOnceError
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.rows import images as view_images
from teachonce.rows.images import ViewImages

V = 3
ROWS = V * PHOTOS
VIEWS = ViewPolicy(views=V, seed=7, randaugment=(2, 9))


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="module")
def clip(student: str) -> LoadedClip:
    """The student."""
    return load_clip(student)


@pytest.fixture(scope="module")
def viewed(world: World, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of each photo, with colour changes, and the student's features; never change it, copy it."""
    path = tmp_path_factory.mktemp("seen") / "a.zarr"
    worlds.teach_inline(world, path, None, students=(student,), views=VIEWS, chunk_rows=45)
    return path


@pytest.fixture
def images(viewed: Path, world: World, clip: LoadedClip) -> Iterator[ViewImages]:
    """Over the store of three views, with two threads."""
    with ViewImages(LabelStore.open(viewed), world.root, clip, threads=2) as opened:
        yield opened


def features_of(store: Path) -> np.ndarray[Any, Any]:
    """The stored features of all rows, float32."""
    (features,) = [data for name, data in all_arrays(store).items() if name.endswith("/features")]
    return features.astype(np.float32)


def damaged(world: World, root: Path, photo: bytes, other: bytes) -> Path:
    """A copy of the data in which one photo has other bytes, as many."""
    shutil.copytree(world.root, root)
    for archive in root.glob("wds/*.tar"):
        archive.write_bytes(archive.read_bytes().replace(photo, other.ljust(len(photo), b"\0")))
    return root


def open_files(root: Path) -> int:
    """How many files of the data this process has open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(root)) for link in links)


def test_features_of_all_views_are_those_that_teach_stored(images: ViewImages, viewed: Path, clip: LoadedClip) -> None:
    """Every row, in mixed order and in steps that share photos: within half a unit of float16."""
    stored = features_of(viewed)
    order = np.random.default_rng(0).permutation(ROWS)
    for rows in np.split(order, 7):
        features = clip.encode_images(images.pixels(rows)).numpy()
        assert np.abs(features - stored[rows]).max() < 1e-3
    first, second = stored[0::V], stored[1::V]
    assert np.median(np.linalg.norm(first - second, axis=1)) > 0.05, "views of a photo differ by far more"


def test_pixels_do_not_depend_on_company_order_or_prefetching(images: ViewImages, viewed: Path) -> None:
    rows = np.array([200, 3, 4, 5, 77, 3])
    alone = torch.cat([images.pixels(rows[i : i + 1]) for i in range(len(rows))])
    assert alone.shape == (6, 3, 32, 32) and alone.dtype == torch.float32
    together = images.pixels(rows)
    assert torch.equal(together, alone) and together.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(together[1], together[5]) and not torch.equal(together[1], together[2])
    buffer = rows.copy()
    images.prefetch(buffer)
    buffer[:] = 0  # the loop may fill its buffer anew
    images.prefetch(rows[::-1])
    images.prefetch(np.arange(9))  # one more than is kept: the first is dropped
    assert torch.equal(images.pixels(rows[::-1]), alone.flip(0))
    assert torch.equal(images.pixels(rows), alone)


def test_what_was_prefetched_is_read_once(images: ViewImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is handed out once, also when blocks begin alike."""
    read, real = list[int](), ViewImages._step

    def noted(self: ViewImages, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        read.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(ViewImages, "_step", noted)
    first, second = np.array([9, 3, 200, 3, 8]), np.array([9, 3, 7])
    images.prefetch(first)
    images.prefetch(second)
    whole = images.pixels(first)
    assert torch.equal(images.pixels(second)[:2], whole[:2]) and read == [5, 3]
    assert torch.equal(images.pixels(first), whole) and read == [5, 3, 5]


@pytest.mark.parametrize("layout", ["tars", "folders", "parquet"])
def test_every_layout_of_the_archives_gives_the_same_pixels(
    layout: str, world: World, student: str, clip: LoadedClip, viewed: Path, images: ViewImages, tmp_path: Path
) -> None:
    manifest, root = world.manifest(layout), world.root
    if layout == "parquet":
        root, manifest = tmp_path / "data", str(tmp_path / "data/parquet.toml")
        in_parquet(world, root)
    path = tmp_path / "b.zarr"
    worlds.teach_inline(
        world, path, None, manifest=manifest, root=root, students=(student,), views=VIEWS, chunk_rows=105
    )
    theirs = [name.rpartition("/")[2].removesuffix(".jpg") for name in keys_of(viewed)]
    ours = {name.rpartition("/")[2].removesuffix(".jpg"): place for place, name in enumerate(keys_of(path))}
    rows = np.array([0, 7, 100, 101, 209])
    same = np.array([ours[theirs[row // V]] * V + row % V for row in rows])
    with ViewImages(LabelStore.open(path), root, clip, threads=1) as others:
        assert torch.equal(others.pixels(same), images.pixels(rows))


def in_parquet(world: World, root: Path) -> None:
    """The photos as one parquet file of small row groups."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    root.mkdir()
    shutil.copy(world.root / "classes.tsv", root)
    rows = [{"bytes": data, "path": f"{name}.jpg"} for name, data in world.photos.items()]
    table = pa.table({"image": rows, "label": [name[:3] for name in world.photos]})
    pq.write_table(table, root / "all.parquet", row_group_size=16)
    splits = "".join(
        f'[splits.{split}]\nformat = "parquet"\npath = "*.parquet"\nlabel = "label"\n' for split in ("train", "val")
    )
    (root / "parquet.toml").write_text(
        f'schema = 1\nname = "tiny-parquet"\ntitle = "tiny"\nclasses = "classes.tsv"\n{splits}'
    )


def test_a_store_without_views_gives_the_models_own_transform(finished: Path, world: World, clip: LoadedClip) -> None:
    names = [key.rpartition("/")[2] for key in keys_of(finished)]
    rows = np.array([69, 0, 31])
    with ViewImages(LabelStore.open(finished), world.root, clip, threads=1) as opened:
        pixels = opened.pixels(rows)
    wanted = [clip.preprocess(Image.open(io.BytesIO(world.photos[names[row]]))) for row in rows.tolist()]
    assert torch.equal(pixels, torch.stack(wanted))


def test_other_bytes_under_the_same_name_are_refused(
    viewed: Path, world: World, clip: LoadedClip, tmp_path: Path
) -> None:
    """Also when they decode well: they are not what was taught. Other photos are not affected."""
    keys = keys_of(viewed)
    name = keys[12].rpartition("/")[2].removesuffix(".jpg")
    photo, other = world.photos[name], encoded(Image.new("RGB", (48, 40), (9, 99, 9)), quality=20)
    root = damaged(world, tmp_path / "data", photo, other)
    with ViewImages(LabelStore.open(viewed), root, clip, threads=2) as opened:
        opened.prefetch(np.array([38, 0]))
        with pytest.raises(ImageChangedError, match=rf"{name}.* of row 38 has CRC-32 \w+, and had \w+ when") as refusal:
            opened.pixels(np.array([38, 0]))
        assert "restore the archives" in refusal.value.hint
        assert opened.pixels(np.array([0, 40])).isfinite().all()
        assert open_files(root) == 0


def test_an_image_that_cannot_be_decoded_is_named(viewed: Path, world: World, clip: LoadedClip, tmp_path: Path) -> None:
    """The bytes are the taught ones by their checksum, so it is the decoder that differs."""
    import zlib

    keys = keys_of(viewed)
    name = keys[0].rpartition("/")[2].removesuffix(".jpg")
    photo = world.photos[name]
    root = damaged(world, tmp_path / "data", photo, b"no image")
    path = copy_store(viewed, tmp_path)
    store = LabelStore.open(path, writable=True)
    data = store.read_chunk(LABELS, 0)
    data["image_crc"][:V] = zlib.crc32(b"no image".ljust(len(photo), b"\0"))
    store.commit(LABELS, 0, 1, 45, 0, store.write_chunk(LABELS, 0, data))
    with (
        ViewImages(LabelStore.open(path), root, clip, threads=1) as opened,
        pytest.raises(DataError, match=f"'{name}.* of row 1 cannot be decoded: .*of no known format"),
    ):
        opened.pixels(np.array([1, 2]))


def test_rows_without_an_image_are_refused(world: World, student: str, clip: LoadedClip, tmp_path: Path) -> None:
    photo = next(iter(world.photos.values()))
    root = damaged(world, tmp_path / "data", photo, b"no image")
    path = tmp_path / "b.zarr"
    worlds.teach_inline(
        World(root, world.photos), path, None, students=(student,), views=VIEWS, chunk_rows=105, max_failed_share=0.1
    )
    (hole, *_) = np.flatnonzero(all_arrays(path)["status"]).tolist()
    with ViewImages(LabelStore.open(path), root, clip, threads=1) as opened:
        with pytest.raises(DataError, match=rf"row {hole} \('.*'\) has no image that could be shown: status 1"):
            opened.pixels(np.array([(hole + V) % ROWS, hole]))
        for rows in (np.array([ROWS]), np.array([-1]), np.array([], np.int64)):
            with pytest.raises(TeachOnceError, match=f"has rows 0 to {ROWS - 1}"):
                opened.pixels(rows)


def test_missing_chunks_archives_and_an_exchanged_index_are_named(
    viewed: Path, world: World, clip: LoadedClip, tmp_path: Path
) -> None:
    path = copy_store(viewed, tmp_path)
    LabelStore.open(path, writable=True).drop(LABELS, 2)
    with ViewImages(LabelStore.open(path), world.root, clip, threads=1) as opened:
        with pytest.raises(IncompleteError, match="chunk 2 of labels is not committed"):
            opened.pixels(np.array([100]))
        assert len(opened.pixels(np.array([0]))) == 1
    with (
        ViewImages(LabelStore.open(viewed), tmp_path, clip, threads=1) as opened,
        pytest.raises(DataError, match="cannot open .*wds/part"),
    ):
        opened.pixels(np.array([100]))
    store = LabelStore.open(path, writable=True)
    keys = np.asarray(store.root["index/key_bytes"][:])  # type: ignore[index]
    keys[:3] = keys[2::-1]
    store.root["index/key_bytes"][:] = keys  # type: ignore[index]
    with (
        ViewImages(LabelStore.open(path), world.root, clip, threads=1) as opened,
        pytest.raises(IntegrityError, match="the sample index of chunk 0 is not the one that was taught"),
    ):
        opened.pixels(np.array([1]))


def test_what_is_kept_of_the_store_is_bounded_and_read_once(
    viewed: Path, world: World, clip: LoadedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = LabelStore.open(viewed), list[int]()
    real = LabelStore.read_chunk

    def noted(self: LabelStore, group: str, chunk: int, only: tuple[str, ...] = ()) -> Any:
        read.append(chunk)
        return real(self, group, chunk, only)

    monkeypatch.setattr(LabelStore, "read_chunk", noted)
    rows = np.arange(0, ROWS, 9)
    with ViewImages(store, world.root, clip, threads=1) as opened:
        first = opened.pixels(rows)
        opened.pixels(rows)
        assert read == [0, 1, 2, 3, 4]
        monkeypatch.setattr(view_images, "FACTS_BYTES", 1)
        assert torch.equal(opened.pixels(rows), first) and read == [0, 1, 2, 3, 4]
        opened.pixels(np.array([0, 100, 0]))
        assert read == [0, 1, 2, 3, 4]


def test_a_store_without_checksums_is_taken_at_its_word(
    viewed: Path, world: World, clip: LoadedClip, images: ViewImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of format version 1, which knows neither those of images nor that of keys."""
    rows = np.array([5, 150])
    wanted, real = images.pixels(rows), LabelStore.read_chunk

    def first_version(self: LabelStore, group: str, chunk: int, only: tuple[str, ...] = ()) -> Any:
        data = real(self, group, chunk, only)
        return {name: x for name, x in data.items() if name not in ("image_crc", "key_digest")}

    monkeypatch.setattr(LabelStore, "read_chunk", first_version)
    with ViewImages(LabelStore.open(viewed), world.root, clip, threads=1) as opened:
        assert torch.equal(opened.pixels(rows), wanted)


def test_files_and_threads_are_gone_after_closing(viewed: Path, world: World, clip: LoadedClip) -> None:
    import threading

    before = threading.active_count()
    images = ViewImages(LabelStore.open(viewed), world.root, clip, threads=3)
    images.prefetch(np.arange(40))
    images.prefetch(np.arange(40, 80))
    images.close()
    assert threading.active_count() == before and open_files(world.root) == 0
