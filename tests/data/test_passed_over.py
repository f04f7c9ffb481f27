"""Whatever lies in a split and is no sample is counted by reason, in every layout; nothing that can be read is lost."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from worlds import Notes, add_member

from teachonce.core.progress import Silent
from teachonce.data.formats import image_endings
from teachonce.data.index import Collected, build_index, collect, few_samples
from teachonce.data.manifests import Manifest, Split
from teachonce.data.reader import ImageReader
from teachonce.errors import DataError

SHARDS = Split(format="webdataset", path="*.tar")
TARS = Split(format="class-tars", path="*.tar")
FOLDERS = Split(format="image-folder", path="data")


def a_manifest(root: Path, split: Split, **more: Split) -> Manifest:
    """Two classes, n1 and n2."""
    (root / "classes.tsv").write_text("n1\tfox\nn2\tjay\n")
    return Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split, **more}, get="Fetch.")


def scanned(root: Path, split: Split, **more: Split) -> Collected:
    """What a scan meets, faults included."""
    return collect(a_manifest(root, split, **more), "train", root, Silent(), stop=False)


def contents(root: Path, collected: Collected) -> dict[str, tuple[int, bytes]]:
    """Label and bytes by key, as a reader gives them."""
    index = collected.index
    with ImageReader(index, root) as reader:
        return {index.key(i): (int(index.label[i]), reader.read(i)) for i in range(len(index))}


def add_special(tar: tarfile.TarFile, name: str, kind: bytes, target: str = "") -> None:
    """Append an entry that is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    tar.addfile(entry)


def write_tar(path: Path, *members: tuple[str, bytes]) -> None:
    """A tar of plain members."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_member(tar, name, data)


def fill(folder: Path, *names: str) -> None:
    """Files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


# Tars


def test_links_inside_a_tar_are_read_and_others_counted(tmp_path: Path) -> None:
    """Hard and symbolic links, before and behind their file, through other links; never out of the archive."""
    with tarfile.open(tmp_path / "n1.tar", "w") as tar:
        add_special(tar, "in/early.jpg", tarfile.SYMTYPE, "../a.jpg")
        add_member(tar, "./a.jpg", b"a")
        add_member(tar, "b.jpg", b"bb")
        add_special(tar, "hard.jpg", tarfile.LNKTYPE, "a.jpg")
        add_special(tar, "chain.jpg", tarfile.SYMTYPE, "in/early.jpg")
        for name, target in (
            ("x.jpg", "y.jpg"),
            ("y.jpg", "x.jpg"),
            ("out.jpg", "/etc/passwd"),
            ("up.jpg", "../b.jpg"),
        ):
            add_special(tar, name, tarfile.SYMTYPE, target)
        add_special(tar, "device.jpg", tarfile.CHRTYPE)
        add_special(tar, "pipe.jpg", tarfile.FIFOTYPE)
        add_member(tar, "__MACOSX/._a.jpg", b"left")
        add_member(tar, "@eaDir/a.jpg/thumb.jpg", b"left")
        add_member(tar, "notes.txt", b"text")
    collected = scanned(tmp_path, TARS)
    assert contents(tmp_path, collected) == {
        "n1/a": (0, b"a"),
        "n1/b": (0, b"bb"),
        "n1/early": (0, b"a"),
        "n1/hard": (0, b"a"),
        "n1/chain": (0, b"a"),
    }
    assert collected.passed_over.counts == {"links": 4, "devices": 2, "other_endings": 1, "leftovers": 2}


def test_links_inside_a_tar_in_a_tar_are_read(tmp_path: Path) -> None:
    """Offsets are those of the outer file, and the reader knows the link's name there too."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add_member(tar, "a.jpg", b"a")
        add_special(tar, "link.jpg", tarfile.LNKTYPE, "a.jpg")
    write_tar(tmp_path / "all.tar", ("n0.txt", b"text"), ("n1.tar", inner.getvalue()), ("stray.jpg", b"x"))
    collected = scanned(tmp_path, Split(format="nested-tars", path="all.tar"))
    assert contents(tmp_path, collected) == {"n1/a": (0, b"a"), "n1/link": (0, b"a")}
    assert collected.passed_over.counts == {"other_endings": 1, "outside_classes": 1}


def test_a_link_does_not_excuse_an_archive_that_was_packed_anew(tmp_path: Path) -> None:
    """Another member at the place of the link's file is found out as before."""
    for names in (("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")):
        with tarfile.open(tmp_path / "n1.tar", "w") as tar:
            for name in names:
                add_member(tar, name, name.encode())
            add_special(tar, "link.jpg", tarfile.LNKTYPE, "a.jpg")
        if names[0] == "a.jpg":
            collected = scanned(tmp_path, TARS)
    with pytest.raises(DataError, match="is not the header of 'n1/"):
        contents(tmp_path, collected)


def test_a_long_chain_of_links_takes_no_long_time(tmp_path: Path) -> None:
    """Each links to the next: every link is followed once."""
    with tarfile.open(tmp_path / "n1.tar", "w") as tar:
        for number in range(5_000):
            add_special(tar, f"{number}.jpg", tarfile.SYMTYPE, f"{number + 1}.jpg")
        add_member(tar, "5000.jpg", b"end")
    assert len(scanned(tmp_path, TARS).index) == 5_001


@pytest.mark.parametrize("behind", [b"", bytes(70_000)], ids=["nothing", "zeros"])
def test_an_archive_ends_at_its_mark_or_in_zeros(behind: bytes, tmp_path: Path) -> None:
    """Padding is no fault."""
    write_tar(tmp_path / "n1.tar", ("a.jpg", b"a"))
    (tmp_path / "n1.tar").write_bytes((tmp_path / "n1.tar").read_bytes() + behind)
    assert scanned(tmp_path, TARS).faults == ()


@pytest.mark.parametrize("nested", [False, True])
def test_what_lies_behind_the_end_mark_is_a_fault(nested: bool, tmp_path: Path) -> None:
    """Two archives that `cat` joined: the second would be lost in silence."""
    write_tar(tmp_path / "n1.tar", ("a.jpg", b"a"))
    joined = 2 * (tmp_path / "n1.tar").read_bytes()
    (tmp_path / "n1.tar").write_bytes(joined)
    split = TARS
    if nested:
        write_tar(tmp_path / "all.tar", ("n1.tar", joined))
        split = Split(format="nested-tars", path="all.tar")
    (fault,) = scanned(tmp_path, split).faults
    assert "goes on behind its end mark at byte" in str(fault) and "n1.tar" in str(fault) and "cat" in fault.hint
    with pytest.raises(DataError, match="behind its end mark"):
        build_index(a_manifest(tmp_path, split), "train", tmp_path, Silent())


def test_archives_beside_those_that_the_path_names(tmp_path: Path) -> None:
    """Compressed and half-fetched ones count; those of another split, checksums and leftovers do not."""
    write_tar(tmp_path / "train-0.tar", ("n1/a.jpg", b"a"))
    fill(
        tmp_path,
        "more/train-1.tar",
        "train-1.tar.gz",
        "train-2.tar.part",
        "train-3.tar.md5",
        "val-0.tar",
        "other.zip",
        "._train-9.tar",
    )
    split, val = (Split(format="folder-tars", path=f"{name}-*.tar") for name in ("train", "val"))
    assert scanned(tmp_path, split, val=val).passed_over.counts == {"sub_folders": 1, "other_archives": 2}
    (tmp_path / "val-0.tar").unlink()
    every = scanned(tmp_path, Split(format="folder-tars", path="*.tar"))
    assert len(every.index) == 1 and every.passed_over.counts == {"sub_folders": 1, "other_archives": 3, "leftovers": 1}


# WebDataset


def shard(root: Path, *members: tuple[str, bytes]) -> tuple[dict[str, tuple[int, bytes]], dict[str, int]]:
    """Samples and reasons of one shard."""
    write_tar(root / "a.tar", *members)
    collected = scanned(root, SHARDS)
    assert collected.faults == ()
    return contents(root, collected), collected.passed_over.counts


def test_dots_in_names_are_no_reason(tmp_path: Path) -> None:
    """The key reaches to the first dot where that gives an image, else to the last."""
    samples, counts = shard(
        tmp_path,
        ("d.0/photo v1.0.jpg", b"1"),
        ("d.0/photo v1.0.cls", b"0"),
        ("d.0/photo v1.1.jpg", b"2"),
        ("d.0/photo v1.1.cls", b"n2"),
        ("x.jpg", b"3"),
        ("x.cls", b"1"),
        ("x.v2.jpg", b"4"),
        ("x.v2.cls", b"0"),
        ("y.left.png", b"5"),
        ("y.cls", b"1"),
    )
    assert samples == {
        "d.0/photo v1.0": (0, b"1"),
        "d.0/photo v1.1": (1, b"2"),
        "x": (1, b"3"),
        "x.v2": (0, b"4"),
        "y.left": (1, b"5"),
    }
    assert counts == {}


def test_side_images_and_halves_of_samples_are_counted(tmp_path: Path) -> None:
    """A mask beside the image, a second image of a further ending, a label alone, an image of no known ending."""
    samples, counts = shard(
        tmp_path,
        ("x.seg.png", b"mask"),
        ("x.jpg", b"1"),
        ("x.cls", b"0"),
        ("x.json", b"{}"),
        ("x.gif", b"moving"),
        ("y.gif", b"2"),
        ("y.cls", b"1"),
        ("z.left.png", b"left"),
        ("z.right.png", b"right"),
        ("z.cls", b"1"),
        ("w.xcf", b"layers"),
        ("w.cls", b"1"),
    )
    assert samples == {"x": (0, b"1"), "y.gif": (1, b"2")}
    assert counts == {"other_endings": 1, "side_images": 2, "no_label": 2, "no_image": 2}


def test_a_label_elsewhere_in_the_shard_is_read(tmp_path: Path) -> None:
    """All images, then all labels; some beside their image all the same; and no memory for those that are whole."""
    names = [f"{i:02d}" for i in range(6)] + ["v1.0", "v1.1"]
    images = [(f"{name}.jpg", name.encode()) for name in names]
    labels = [(f"{name}.cls", str(i % 2).encode()) for i, name in enumerate(names)]
    samples, counts = shard(tmp_path, *images[3:], *labels[4:], images[0], labels[0], *labels[1:4], *images[1:3])
    assert samples == {name: (i % 2, name.encode()) for i, name in enumerate(names)} and counts == {}
    assert len(few_samples(a_manifest(tmp_path, SHARDS), "train", tmp_path, 2)) == 2


def test_a_label_that_is_a_long_json_is_read_whole(tmp_path: Path) -> None:
    """Short labels come with their header; long ones are read at their place."""
    text = json.dumps({"text": "word " * 100, "label": 1}).encode()
    write_tar(tmp_path / "a.tar", ("x.jpg", b"1"), ("x.json", text))
    collected = scanned(tmp_path, Split(format="webdataset", path="*.tar", label="json:label"))
    assert collected.index.label.tolist() == [1]


def test_a_sample_without_label_says_what_is_there(tmp_path: Path) -> None:
    """The name that is missing, and the names that lie beside the image."""
    write_tar(tmp_path / "a.tar", ("x.jpg", b"1"), ("x.txt", b"fox"), ("y.cls", b"0"))
    (fault,) = scanned(tmp_path, SHARDS).faults
    assert "nor elsewhere in the archive: no 'x.cls'; beside the image lie x.txt" in str(fault)


@pytest.mark.parametrize("label", ["cls", "key"])
def test_a_shard_whose_names_all_begin_alike_is_read_in_bounded_groups(label: str, tmp_path: Path) -> None:
    """Dates with dots make one group of everything; a few samples still come from the beginning of the shard."""
    members = [(f"n1_2021.06.{i:04d}.{kind}", b"0") for i in range(600) for kind in ("jpg", "cls")]
    write_tar(tmp_path / "a.tar", *members)
    split = Split(format="webdataset", path="*.tar", label=label)
    collected = scanned(tmp_path, split)
    assert len(collected.index) == 600 and collected.faults == ()
    assert len(few_samples(a_manifest(tmp_path, split), "train", tmp_path, 5)) == 5


# Folders and lists


def test_class_folders_say_what_they_pass_over(tmp_path: Path) -> None:
    """Sub-folders, other endings, folders of no class, images beside the folders, links, pipes, leftovers."""
    data = tmp_path / "data"
    fill(data, *(f"n1/{i}.{ending}" for i, ending in enumerate(("jpg", "JFIF", "bmp", "tif", "gif", "jpe"))))
    fill(data, "n1/sub/1.jpg", "n1/sub/deeper/2.bmp", "n1/sub/@eaDir/2.jpg", "n1/sub/read.me", "n1/a.xcf")
    fill(data, "n1/.DS_Store", "n1/Thumbs.db", "n1/._0.jpg", "__MACOSX/n1/0.jpg", "n3/1.jpg", "beside.png", "README.md")
    (data / "n2").mkdir()
    os.symlink(data / "n3", data / "n1/folder")
    os.symlink(data / "gone.jpg", data / "n1/gone.jpg")
    os.symlink(data / "n3/1.jpg", data / "n1/link.jpg")
    os.symlink(data / "gone", data / "n4")
    os.mkfifo(data / "n1/pipe.jpg")
    collected = scanned(tmp_path, FOLDERS)
    assert len(collected.index) == 7
    assert collected.passed_over.counts == {
        "links": 3,
        "devices": 1,
        "other_endings": 1,
        "sub_folders": 2,
        "outside_classes": 1,
        "no_class": 1,
        "leftovers": 4,
    }
    assert collected.empty_parts == ("n2",)


def test_classes_by_folder_leave_out_what_systems_make(tmp_path: Path) -> None:
    """`@eaDir` and `__MACOSX` are no classes."""
    fill(tmp_path / "data", "fox/1.jpg", "@eaDir/1.jpg", "__MACOSX/1.jpg")
    manifest = Manifest(schema=1, name="m", title="M", classes="folders", splits={"train": FOLDERS}, get="")
    assert len(build_index(manifest, "train", tmp_path, Silent())) == 1


@pytest.mark.parametrize("kind", ["coop-split", "image-list"])
def test_images_that_no_list_names_are_counted(kind: Any, tmp_path: Path) -> None:
    """Those of the other parts and of the other splits' lists are named."""
    fill(tmp_path / "images", "a/1.jpg", "a/2.jpg", "3.png", "a/new.jpg", "b/new.tif", "a/notes.txt", "a/._1.jpg")
    if kind == "coop-split":
        split = {"train": [["a/1.jpg", 0, "fox"]], "val": [["a/2.jpg", 0, "fox"]], "test": [["3.png", 0, "fox"]]}
        (tmp_path / "split.json").write_text(json.dumps(split))
        splits = {part: Split(format=kind, path="split.json", images="images", part=part) for part in ("train", "test")}
        classes = "split"
    else:
        (tmp_path / "train.txt").write_text("a/1.jpg fox\n3.png fox\n")
        (tmp_path / "test.txt").write_text("a/2 fox\n")
        (tmp_path / "names.txt").write_text("fox\n")
        splits = {part: Split(format=kind, path=f"{part}.txt", images="images") for part in ("train", "test", "gone")}
        classes = "lines:names.txt"
    manifest = Manifest(schema=1, name="m", title="M", classes=classes, splits=splits, get="")
    collected = collect(manifest, "train", tmp_path, Silent(), stop=True)
    assert collected.passed_over.counts == {"not_listed": 2, "leftovers": 1}
    assert collected.passed_over.examples["not_listed"] == ("a/new.jpg", "b/new.tif")


# Parquet


def test_rows_of_parquet_with_equal_names_are_distinct(tmp_path: Path) -> None:
    """In one file, and in files of one name; the first keeps the key that it would have alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for folder in ("a", "b"):
        rows = [{"bytes": f"{folder}{i}".encode(), "path": f"image_{i % 2}.jpg"} for i in range(4)]
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"image": rows, "label": [0, 0, 1, 1]}), tmp_path / folder / "train.parquet")
    collected = scanned(tmp_path, Split(format="parquet", path="*/train.parquet", label="label"))
    keys = ["image_0", "image_1", "image_0~2", "image_1~3"]
    assert contents(tmp_path, collected) == {
        **{f"train/{key}": (i // 2, f"a{i}".encode()) for i, key in enumerate(keys)},
        **{f"b/train/{key}": (i // 2, f"b{i}".encode()) for i, key in enumerate(keys)},
    }


def test_rows_of_parquet_without_bytes_are_said(tmp_path: Path) -> None:
    """Files that only name images on the disk of whoever wrote them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": None if i < 2 else b"x", "path": f"/home/them/{i}.jpg"} for i in range(3)]
    pq.write_table(pa.table({"image": rows, "label": [0, 0, 1]}), tmp_path / "train.parquet")
    collected = scanned(tmp_path, Split(format="parquet", path="train.parquet", label="label"))
    assert list(collected.foreign.values()) == [2] and len(collected.index) == 3


# How it is said


def test_it_is_said_once_and_only_where_there_is_something(tmp_path: Path) -> None:
    """One note of the scan, with manifest and split; a set that is taken whole has none."""
    fill(tmp_path / "data", "n1/1.jpg", "n2/1.jpg")
    notes = Notes()
    build_index(a_manifest(tmp_path, FOLDERS), "train", tmp_path, notes)
    assert notes.lines == []
    fill(tmp_path / "data", "n1/1.xcf")
    build_index(a_manifest(tmp_path, FOLDERS), "train", tmp_path, notes)
    assert notes.lines == ["m, train: passed over: 1 other endings (.xcf 1)"]


def test_a_set_without_images_says_what_lies_there_instead(tmp_path: Path) -> None:
    """The endings that are read, and what was passed over."""
    fill(tmp_path / "data", "n1/1.xcf", "n2/sub/1.jpg")
    with pytest.raises(
        DataError, match=r"holds no image \(.*bmp.*\); passed over: 1 other endings \(.xcf 1\), 1 in sub"
    ):
        build_index(a_manifest(tmp_path, FOLDERS), "train", tmp_path, Silent())
    assert {"jpg", "bmp", "tiff", "gif"} <= image_endings()
