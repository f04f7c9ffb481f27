"""Every layout that a shipped manifest describes is read image by image, or what is wrong with it is said."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import coop_layouts
import layouts
import numpy as np
import pytest
import worlds
from layouts import LAYOUTS, laid_out
from worlds import IDS, World, add_member

from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex, build_index
from teachonce.data.manifests import Manifest, Split, load_manifest, shipped_manifests
from teachonce.data.reader import BACKOFF, ImageReader
from teachonce.data.views import sample_name
from teachonce.errors import DataError, EnvironmentFault

USED = IDS[:-1]  # the last class of the tiny world has no photo


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Seventy photos."""
    return worlds.session_world(tmp_path_factory)


def content(index: SampleIndex, root: Path) -> dict[str, tuple[int, bytes]]:
    """Label and bytes of every sample by its name."""
    with ImageReader(index, root) as reader:
        samples = {sample_name(index.key(i)): (int(index.label[i]), reader.read(i)) for i in range(len(index))}
    assert len(samples) == len(index)
    return samples


def test_every_shipped_layout_is_tried_here() -> None:
    """A manifest comes with a test of its structure; some are read by tests of their own."""
    assert set(LAYOUTS) | {"local-tars", "demo", "photo-folder"} | set(coop_layouts.NAMES) == set(shipped_manifests())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shipped_layout_gives_all_photos(name: str, world: World, tmp_path: Path) -> None:
    """The same names, labels and bytes from each, in every split that has them."""
    manifest = load_manifest(laid_out(name, tmp_path, world.photos, USED))
    wanted = {photo: (USED.index(photo[:3]), data) for photo, data in world.photos.items()}
    for split in manifest.splits:
        assert content(build_index(manifest, split, tmp_path, Silent()), tmp_path) == wanted


def test_offsets_into_a_tar_of_tars_are_those_of_the_outer_file(world: World, tmp_path: Path) -> None:
    """Plain reads of the outer file at the stored place give the photo."""
    manifest = load_manifest(laid_out("imagenet21k-fall11", tmp_path, world.photos, USED))
    index = build_index(manifest, "train", tmp_path, Silent())
    whole = (tmp_path / "fall11_whole.tar").read_bytes()
    assert index.archives == ("fall11_whole.tar",)
    for i in range(len(index)):
        start = int(index.offset[i])
        assert whole[start : start + int(index.size[i])] == world.photos[sample_name(index.key(i))]


def test_gzipped_members_keep_their_bytes(world: World, tmp_path: Path) -> None:
    """As 26 images of fall 2011 lie in the archive; decoding unpacks them."""
    photos = dict(world.photos) | {"n01_00": gzip.compress(world.photos["n01_00"])}
    manifest = load_manifest(laid_out("imagenet21k-fall11", tmp_path, photos, USED))
    samples = content(build_index(manifest, "train", tmp_path, Silent()), tmp_path)
    assert samples["n01_00"][1] == photos["n01_00"]


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_inner_tar_is_named(damage: str, world: World, tmp_path: Path) -> None:
    """The outer archive and the class: which of 21,841 it is."""
    path = laid_out("imagenet21k-fall11", tmp_path, world.photos, USED)
    with tarfile.open(tmp_path / "fall11_whole.tar", "w") as tar:
        for class_id in USED:
            data = layouts.class_tar(world.photos, class_id)
            if class_id == "n03":
                data = data[:3000] if damage == "cut" else data[:150] + b"9" + data[151:]
            add_member(tar, f"{class_id}.tar", data)
    with pytest.raises(DataError, match=r"fall11_whole.tar \(n03.tar in it\)"):
        build_index(load_manifest(path), "train", tmp_path, Silent())


def one_split(root: Path, split: Split, members: dict[str, bytes]) -> SampleIndex:
    """The index of one tar with these members, over two classes."""
    with tarfile.open(root / "a-0000.tar", "w") as tar:
        for name, data in members.items():
            add_member(tar, name, data)
    (root / "classes.tsv").write_text("n1\tfox\nn2\tjay\n")
    manifest = Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split}, get="Fetch it.")
    return build_index(manifest, "train", root, Silent())


@pytest.mark.parametrize(
    ("label", "members", "wanted"),
    [
        ("json:filename", {"a.jpg": b"1", "a.json": b'{"filename": "x/n2_7.JPEG"}'}, 1),
        ("json:label", {"a.jpg": b"1", "a.json": b'{"label": 1}'}, 1),
        ("json:label", {"a.jpg": b"1", "a.json": b'{"label": "n1"}'}, 0),
        ("key", {"n2_9.jpg": b"1", "n2_9.cls": b"77"}, 1),
        ("cls", {"a.webp": b"1", "a.cls": b"0"}, 0),
    ],
)
def test_ways_of_stating_a_label(label: str, members: dict[str, bytes], wanted: int, tmp_path: Path) -> None:
    """A member, a field of a JSON member, the key."""
    split = Split(format="webdataset", path="*.tar", label=label)
    assert one_split(tmp_path, split, members).label.tolist() == [wanted]


@pytest.mark.parametrize(
    ("label", "members", "message"),
    [
        ("json:filename", {"a.jpg": b"1", "a.json": b"{}"}, "expected a JSON object with 'filename'"),
        ("json:filename", {"a.jpg": b"1", "a.json": b"[1"}, "expected a JSON object with 'filename'"),
        ("json:label", {"a.jpg": b"1", "a.json": b'{"label": 2}'}, "a number below 2"),
        ("key", {"n3_9.jpg": b"1"}, "'n3' is not in the class list"),
        ("key", {"nokey.jpg": b"1"}, "'nokey' is not in the class list"),
    ],
)
def test_labels_that_are_none(label: str, members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    """The archive, the key and what was expected."""
    split = Split(format="webdataset", path="*.tar", label=label)
    with pytest.raises(DataError, match=message) as caught:
        one_split(tmp_path, split, members)
    assert "a-0000.tar" in str(caught.value)


def test_images_without_classes(tmp_path: Path) -> None:
    """Unlabelled tars of any structure: labels are unknown, keys stay apart."""
    split = Split(format="folder-tars", path="*.tar", unlabelled=True)
    index = one_split(tmp_path, split, {"x/1.jpg": b"1", "y/1.jpg": b"2", "notes.txt": b"3"})
    assert index.label.tolist() == [-1, -1] and [index.key(i) for i in range(2)] == ["a-0000/x/1", "a-0000/y/1"]


def test_a_folder_that_is_no_class(tmp_path: Path) -> None:
    """In tars of class folders the folder names the class."""
    with pytest.raises(DataError, match="the folder of 'n9/1.jpg': 'n9' is not in the class list"):
        one_split(tmp_path, Split(format="folder-tars", path="*.tar"), {"n1/1.jpg": b"1", "n9/1.jpg": b"2"})


def test_a_line_break_in_the_name_of_an_archive(tmp_path: Path) -> None:
    """Archive names are kept a line each."""
    (tmp_path / "a\nb.tar").write_bytes(b"")
    with pytest.raises(DataError, match="must not hold a line break"):
        one_split(tmp_path, Split(format="folder-tars", path="*.tar"), {"n1/1.jpg": b"1"})


# Archives that changed after they were indexed


def test_an_archive_that_was_packed_anew(tmp_path: Path) -> None:
    """The same length, other members in the same places: never another image under the sample's key."""
    split = Split(format="folder-tars", path="*.tar")
    index = one_split(tmp_path, split, {"n1/a.jpg": b"x" * 100, "n2/b.jpg": b"y" * 100})
    assert content(index, tmp_path)["b"] == (1, b"y" * 100)
    one_split(tmp_path, split, {"n2/b.jpg": b"y" * 100, "n1/a.jpg": b"x" * 100})
    with pytest.raises(DataError, match="is not the header of 'n1/a'") as caught:
        content(index, tmp_path)
    assert "packed anew" in caught.value.hint


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_headers_of_every_style_are_known(style: int, tmp_path: Path) -> None:
    """Long names, foreign names, folders: what tarfile writes is accepted."""
    names = [
        "n1/" + "l" * 80 + ".jpg",
        "d" * 70 + "/" + "e" * 70 + "/n1/x.jpg",
        "n1/caf\u00e9.jpg",
        "n2/" + "m" * 97 + ".jpg",
    ]
    if style == tarfile.USTAR_FORMAT:
        names = names[:3]
    with tarfile.open(tmp_path / "a-0000.tar", "w", format=style) as tar:
        for name in names:
            add_member(tar, name, name.encode())
    (tmp_path / "classes.tsv").write_text("n1\tfox\nn2\tjay\n")
    split = Split(format="folder-tars", path="*.tar")
    manifest = Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split})
    index = build_index(manifest, "train", tmp_path, Silent())
    assert [data for _, data in content(index, tmp_path).values()] == [name.encode() for name in names]


# Disks that fail now and then


class FlakyReads:
    """os.pread that raises EIO with probability p, seeded."""

    def __init__(self, p: float) -> None:
        self.p, self.rng, self.failed, self.real = p, np.random.default_rng(0), 0, os.pread

    def __call__(self, *arguments: Any) -> bytes:
        """Read, or fail."""
        if self.rng.random() < self.p:
            self.failed += 1
            raise OSError(5, "Input/output error")
        return self.real(*arguments)


def test_reads_that_fail_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With p = 0.3 all bytes come; with p = 1 the archive and the number of tries are named."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    index = build_index(load_manifest(world.manifest("tars")), "train", world.root, Silent())
    flaky = FlakyReads(0.3)
    monkeypatch.setattr(os, "pread", flaky)
    assert {name: data for name, (_, data) in content(index, world.root).items()} == world.photos
    assert flaky.failed > 10
    monkeypatch.setattr(os, "pread", FlakyReads(1.0))
    with pytest.raises(OSError, match=rf"Input/output error, {len(BACKOFF) + 1} times: .*n01\.tar"):
        content(index, world.root)


# Parquet


def parquet_world(world: World, root: Path) -> Manifest:
    """The photos as parquet files."""
    return load_manifest(laid_out("hf-parquet", root, world.photos, USED))


def test_class_names_come_from_the_schema(world: World, tmp_path: Path) -> None:
    """As the `datasets` library keeps them; without them a class list is asked for."""
    import pyarrow.parquet as pq

    manifest = parquet_world(world, tmp_path)
    for path in (tmp_path / "data").glob("train-*"):
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(DataError, match="names no classes") as caught:
        build_index(manifest, "train", tmp_path, Silent())
    assert "classes.tsv" in caught.value.hint


def test_plain_columns_of_bytes_and_words(world: World, tmp_path: Path) -> None:
    """Bytes without a struct, class ids instead of numbers, no file names: keys are row numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(world.photos)
    table = pa.table({"jpg": [world.photos[name] for name in names], "id": [name[:3] for name in names]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=9)
    (tmp_path / "classes.tsv").write_text("".join(f"{i}\t{i}\n" for i in USED))
    split = Split(format="parquet", path="*.parquet", label="id")
    manifest = Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split})
    index = build_index(manifest, "train", tmp_path, Silent())
    assert index.key(3) == "x/00000003"
    with ImageReader(index, tmp_path) as reader:
        for i in np.random.default_rng(0).permutation(len(names)).tolist():
            assert reader.read(i) == world.photos[names[i]] and USED[index.label[i]] == names[i][:3]


@pytest.mark.parametrize("change", ["label", "image", "two", "range", "garbage"])
def test_parquet_files_that_do_not_fit(change: str, world: World, tmp_path: Path) -> None:
    """A missing column, two that could be images, a label out of range, no parquet file: said with the file's name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = parquet_world(world, tmp_path)
    path = tmp_path / "data/train-00001-of-00002.parquet"
    table = pq.read_table(path)
    if change in ("label", "image"):
        table = table.drop_columns([change])
    elif change == "two":
        table = table.rename_columns(["a", "label"]).append_column("b", pa.array([b"x"] * len(table)))
    elif change == "range":
        table = table.set_column(1, "label", pa.array([7] * len(table)))
    pq.write_table(table, path)
    if change == "garbage":
        path.write_bytes(b"PAR1 and then nothing")
    message = {
        "label": "no column 'label'",
        "image": "expected one column of images, found none",
        "two": "one column of images, found .*'a', 'b'",
        "range": "the label is 7",
        "garbage": "as a parquet file",
    }
    with pytest.raises(DataError, match=message[change]) as caught:
        build_index(manifest, "train", tmp_path, Silent())
    assert "train-00001" in str(caught.value)


def test_a_parquet_file_that_shrank(world: World, tmp_path: Path) -> None:
    """Rows that were indexed and are gone."""
    import pyarrow.parquet as pq

    index = build_index(parquet_world(world, tmp_path), "train", tmp_path, Silent())
    path = tmp_path / "data/train-00001-of-00002.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(DataError, match=r"train-00001.* has 5 rows; row \d+ was there"):
        content(index, tmp_path)


def test_parquet_without_pyarrow(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    manifest = parquet_world(world, tmp_path)
    monkeypatch.delitem(sys.modules, "teachonce.data.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match="pyarrow") as caught:
        build_index(manifest, "train", tmp_path, Silent())
    assert "teachonce[parquet]" in caught.value.hint


def test_json_of_a_sample_is_not_its_image(tmp_path: Path) -> None:
    """Members beside the image are passed over."""
    members = {"a.jpg": b"1", "a.json": json.dumps({"x": 1}).encode(), "a.cls": b"1", "a.txt": b"t"}
    assert len(one_split(tmp_path, Split(format="webdataset", path="*.tar"), members)) == 1
