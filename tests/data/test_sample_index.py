"""The sample index finds every image of a split at its place, the same ones in every layout, or says what is wrong."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from worlds import IDS, PHOTOS, World, add_member

from teachonce.core.progress import Silent
from teachonce.data.index import SampleIndex, build_index
from teachonce.data.manifests import Manifest, Split, load_manifest
from teachonce.data.reader import ImageReader
from teachonce.errors import DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Seventy photos in three layouts."""
    return worlds.session_world(tmp_path_factory)


def index_of(world: World, layout: str) -> SampleIndex:
    """The index of one layout."""
    return build_index(load_manifest(world.manifest(layout)), "train", world.root, Silent())


@pytest.mark.parametrize("layout", ["wds", "tars", "folders"])
def test_every_image_is_found_with_its_label_and_its_bytes(world: World, layout: str) -> None:
    """All three layouts hold the same photos: the same names, labels and bytes, each exactly once."""
    index = index_of(world, layout)
    samples = {}
    with ImageReader(index, world.root) as reader:
        for sample in range(len(index)):
            name = index.key(sample).rpartition("/")[2].removesuffix(".jpg")
            assert IDS[index.label[sample]] == name[:3]
            samples[name] = reader.read(sample)
    assert len(index) == PHOTOS and samples == world.photos


@pytest.mark.parametrize("layout", ["wds", "tars"])
def test_offsets_are_those_of_tarfile(world: World, layout: str) -> None:
    """Plain `tarfile` gives the same places."""
    index = index_of(world, layout)
    ours = {
        (index.archives[a], int(o), int(s)) for a, o, s in zip(index.archive, index.offset, index.size, strict=True)
    }
    theirs = set()
    for name in index.archives:
        with tarfile.open(world.root / name) as tar:
            theirs |= {(name, m.offset_data, m.size) for m in tar if m.name.endswith(".jpg")}
    assert ours == theirs


def test_the_index_is_the_same_each_time_and_its_digest_covers_it(world: World) -> None:
    """Scanning twice gives equal digests; another layout, label or place another one."""
    index = index_of(world, "wds")
    assert index.digest == index_of(world, "wds").digest
    assert index.digest != index_of(world, "tars").digest
    columns = dict(vars(index)) | {"label": index.label.copy()}
    columns.pop("digest")
    columns["label"][3] += 1
    assert SampleIndex(**columns).digest != index.digest


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_taking_samples_keeps_keys_with_their_rows(samples: list[int]) -> None:
    """Any selection, in any order, with repeats: each row is that of the sample it came from."""
    index = worlds.synthetic_index(31, 5)
    taken = index.take(np.array(samples))
    assert [taken.key(i) for i in range(len(taken))] == [index.key(s) for s in samples]
    for name in ("archive", "offset", "size", "label"):
        assert np.array_equal(getattr(taken, name), getattr(index, name)[samples])


PLAIN = Split(format="webdataset", path="*.tar")


def a_manifest(split: Split = PLAIN) -> Manifest:
    """Two classes, one split."""
    return Manifest(schema=1, name="m", title="M", classes="classes.tsv", splits={"train": split}, get="Fetch it.")


def scan(root: Path, split: Split = PLAIN) -> SampleIndex:
    """The index of what lies below `root`."""
    (root / "classes.tsv").write_text("n1\tfox\nn2\tjay\n")
    return build_index(a_manifest(split), "train", root, Silent())


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: int) -> None:
    """A tar of these members."""
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            add_member(tar, name, data)


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_webdataset_conventions(style: int, tmp_path: Path) -> None:
    """Folders, long names, capitals, other members, label by number or id, label before or after the image."""
    deep = "f" * 90 + "/" + "g" * 60
    write_tar(
        tmp_path / "a.tar",
        [
            ("x.JPG", b"one"),
            ("x.cls", b"1\n"),
            ("x.json", b"{}"),
            ("dir/y.cls", b"n1"),
            ("dir/y.seg.png", b"mask"),
            ("dir/y.jpeg", b"two"),
            (f"{deep}.png", b"three"),
            (f"{deep}.cls", b" n2 "),
            ("notes.txt", b"no image"),
            ("z.webp", b"four"),
            ("z.cls", b"0"),
        ],
        format=style,
    )
    index = scan(tmp_path)
    assert [index.key(i) for i in range(4)] == ["x", "dir/y", deep, "z"]
    assert index.label.tolist() == [1, 0, 1, 0]
    with ImageReader(index, tmp_path) as reader:
        assert [reader.read(i) for i in range(4)] == [b"one", b"two", b"three", b"four"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", b"1")], "a.tar: the sample 'x' has no label"),
        ([("x.jpg", b"1"), ("x.cls", b"2")], "'2'"),
        ([("x.jpg", b"1"), ("x.cls", b"fox")], "expected a class id or a number below 2"),
        ([("x.jpg", b"1"), ("x.cls", b"-1")], "'-1'"),
        ([("x.jpg", b"1"), ("x.cls", b"\xff")], "the label of 'x'"),
        ([("x.jpg", b"1"), ("x.cls", b"")], "the label of 'x' is ''"),
        ([("x.cls", b"1"), ("y.txt", b"1")], "holds no image"),
    ],
)
def test_a_sample_without_a_sound_label_is_refused_by_name(
    members: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    """Which archive, which sample, what was found, what was expected."""
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


def test_a_key_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    """Rows are paired with images by key."""
    for name in ("a", "b"):
        write_tar(
            tmp_path / f"{name}.tar", [("x.jpg", b"1"), ("x.cls", b"1"), (f"{name}.jpg", b"2"), (f"{name}.cls", b"0")]
        )
    with pytest.raises(DataError, match=r"'x' comes twice: in a\.tar and b\.tar"):
        scan(tmp_path)


def test_the_number_of_samples_must_be_the_declared_one(tmp_path: Path) -> None:
    """Both numbers are in the message."""
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.cls", b"1")])
    assert len(scan(tmp_path, Split(format="webdataset", path="*.tar", samples=1))) == 1
    with pytest.raises(DataError, match="holds 1 images; its manifest says 2"):
        scan(tmp_path, Split(format="webdataset", path="*.tar", samples=2))


def test_no_archive_says_where_to_get_them(tmp_path: Path) -> None:
    """The glob and the manifest's own words."""
    with pytest.raises(DataError, match=r"no archive matches .*\*\.tar") as caught:
        scan(tmp_path)
    assert caught.value.hint == "Fetch it."


def test_a_class_tar_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    """The file's name is the class; a foreign one is no class of ours."""
    write_tar(tmp_path / "n3.tar", [("x.jpg", b"1")])
    with pytest.raises(DataError, match=r"n3\.tar: 'n3' is not in the class list"):
        scan(tmp_path, Split(format="class-tars", path="*.tar"))


def a_sound_tar() -> bytes:
    """Three samples."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(3):
            add_member(tar, f"k{i}.jpg", bytes(700 + i))
            add_member(tar, f"k{i}.cls", b"1")
    return buffer.getvalue()


def test_an_archive_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """Cut after every 256 bytes: never fewer samples in silence. Only the zeros behind the last member may go."""
    data = a_sound_tar()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        end = max(member.offset_data + member.size for member in tar)
    silent = []
    for length in range(0, len(data), 256):
        (tmp_path / "a.tar").write_bytes(data[:length])
        try:
            members = len(scan(tmp_path))
        except DataError as problem:
            assert "a.tar" in str(problem) or "holds no image" in str(problem)
        else:
            if members < 3:
                silent.append((length, members))
    assert end < len(data)
    assert silent == []


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    """`tarfile` takes a header with a wrong checksum for the end of the archive; we must not."""
    data = bytearray(a_sound_tar())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        second = tar.getmembers()[2].offset
    data[second] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match="a.tar"):
        scan(tmp_path)


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Byte ranges need plain tars."""
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        add_member(tar, "x.jpg", b"1")
    with pytest.raises(DataError, match="not a readable tar") as caught:
        scan(tmp_path)
    assert "compressed" in caught.value.hint


def test_a_folder_where_an_archive_should_be_is_refused_by_name(tmp_path: Path) -> None:
    """What the glob matches but cannot be read is a data error."""
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match="a.tar"):
        scan(tmp_path)


def test_a_number_is_the_line_of_the_class_list_also_where_ids_are_numbers(tmp_path: Path) -> None:
    """With the ids 1, 2, 3 the label 1 is the second class, not the class called 1."""
    members = [(f"s{i}.{kind}", data) for i in range(3) for kind, data in (("jpg", b"x"), ("cls", str(i).encode()))]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "classes.tsv").write_text("1\tfox\n2\tjay\n3\tbus\n")
    (tmp_path / "m.toml").write_text(
        'schema = 1\nname = "n"\ntitle = "t"\nclasses = "classes.tsv"\n'
        '[splits.train]\nformat = "webdataset"\npath = "*.tar"\n'
    )
    index = build_index(load_manifest(str(tmp_path / "m.toml")), "train", tmp_path, Silent())
    assert index.label.tolist() == [0, 1, 2]
