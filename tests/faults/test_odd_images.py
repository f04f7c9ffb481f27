"""Faults 11 and 12: odd images are counted and harm no neighbour; hostile archives write nothing and are refused."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import worlds
from PIL import Image
from worlds import World, all_arrays, encoded, keys_of, make_photo, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.index import build_index
from teachonce.data.manifests import load_manifest
from teachonce.errors import DataError
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, verify

PHOTO = make_photo(2, 3)
# Pillow's remark on one of the odd images; the image is good.
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 900 million pixels."""
    tiny = encoded(Image.new("1", (8, 8)), "PNG")
    start = tiny.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + tiny[start + 12 : start + 17]
    return tiny[:start] + header + struct.pack(">I", zlib.crc32(header)) + tiny[start + 21 :]


def animated(kind: str) -> bytes:
    """Three frames."""
    frames = [make_photo(2, i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0)


def rotated() -> bytes:
    """A photo with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO, exif=exif)


GOOD: dict[str, Callable[[], bytes]] = {
    "cmyk": lambda: encoded(PHOTO.convert("CMYK")),
    "grey": lambda: encoded(PHOTO.convert("L")),
    "deep": lambda: encoded(Image.fromarray((np.arange(48 * 40).reshape(40, 48) * 34).astype(np.uint16)), "PNG"),
    "png-named-jpg": lambda: encoded(PHOTO, "PNG"),
    "palette": lambda: encoded(PHOTO.convert("P"), "PNG"),
    "transparent": lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
    "palette-with-transparency": lambda: encoded(PHOTO.convert("P"), "PNG", transparency=bytes(range(256))),
    "gzipped": lambda: gzip.compress(encoded(PHOTO)),
    "animated-webp": lambda: animated("WEBP"),
    "animated-gif-named-jpg": lambda: animated("GIF"),
    "one-pixel": lambda: encoded(Image.new("RGB", (1, 1), "red")),
    "thin": lambda: encoded(Image.new("RGB", (700, 1), "blue")),
    "exif-rotated": rotated,
}
BAD: dict[str, tuple[int, Callable[[], bytes]]] = {
    "truncated": (1, lambda: encoded(PHOTO)[:400]),
    "empty": (1, lambda: b""),
    "text": (1, lambda: b"<html>404 not found</html>"),
    "heic-named-jpg": (1, lambda: b"\0\0\0\x18ftypheic" + bytes(80)),
    "gzipped-text": (1, lambda: gzip.compress(b"no image")),
    "cut-gzip": (1, lambda: gzip.compress(encoded(PHOTO))[:300]),
    "bomb": (2, bomb),
}


def odd_world(root: Path, photos: dict[str, bytes], odd: dict[str, bytes]) -> World:
    """The tiny world with some photos replaced by odd ones."""
    return worlds.make_world(root, photos | odd)


@pytest.fixture(scope="module")
def odd_store(
    world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A store over the tiny world in which some photos are odd; and which row is which oddity."""
    root = tmp_path_factory.mktemp("odd")
    victims = list(world.photos)[3 : 3 + 3 * (len(GOOD) + len(BAD)) : 3]
    kinds = dict(zip(victims, (*GOOD, *BAD), strict=True))
    data = {name: GOOD[kind]() if kind in GOOD else BAD[kind][1]() for name, kind in kinds.items()}
    teach_inline(
        odd_world(root / "world", world.photos, data),
        root / "a.zarr",
        teacher,
        students=(student,),
        top_k=5,
        max_failed_share=0.2,
    )
    return root / "a.zarr", kinds


def test_fault_11_counts_add_up_and_reasons_are_kept(odd_store: tuple[Path, dict[str, str]]) -> None:
    """Each odd image has its status; ok and failed are all rows; every failure has a line with key and reason."""
    store, kinds = odd_store
    status = dict(
        zip((k.rpartition("/")[2] for k in keys_of(store)), all_arrays(store)["status"].tolist(), strict=True)
    )
    wanted = {name: BAD[kind][0] if kind in BAD else 0 for name, kind in kinds.items()}
    assert {name: status[name] for name in kinds} == wanted
    assert all(value == 0 for name, value in status.items() if name not in kinds)
    inspected = inspect(InspectRequest(labels=store), Silent())
    assert inspected.rows_failed == len(BAD) == sum(value != 0 for value in status.values())
    lines = [json.loads(line) for line in store.with_name("a.zarr.failures.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(name for name, kind in kinds.items() if kind in BAD)
    assert all(line["reason"] for line in lines)
    assert verify(VerifyRequest(labels=store), Silent()).ok


def test_fault_11_a_failed_row_holds_nothing(odd_store: tuple[Path, dict[str, str]]) -> None:
    """No zero row passes for data: impossible class, NaN; the ground truth is kept."""
    store, _ = odd_store
    arrays = all_arrays(store)
    bad = arrays["status"] != 0
    assert (arrays["class_ids"][bad] == 65535).all() and (arrays["gaps"][bad] == 255).all()
    features = next(data for name, data in arrays.items() if name.startswith("students/"))
    for data in (arrays["top_log_prob"], arrays["log_residual"], features):
        assert np.isnan(data[bad].astype(np.float32)).all() and not np.isnan(data[~bad].astype(np.float32)).any()
    assert (arrays["label"] >= 0).all()


def test_fault_11_neighbours_are_bit_identical(finished: Path, odd_store: tuple[Path, dict[str, str]]) -> None:
    """A photo's row does not depend on what is wrong with others of its batch."""
    store, kinds = odd_store
    ours, wanted = all_arrays(store), all_arrays(finished)
    keys = keys_of(store)
    assert keys == keys_of(finished)
    untouched = np.array([key not in kinds for key in keys])
    assert 40 < untouched.sum() < len(keys)
    by_row = {name: data for name, data in ours.items() if len(data) == len(keys)}  # others are of whole chunks
    assert {"class_ids", "gaps", "image_crc", "label"} <= set(by_row)
    for name, data in by_row.items():
        assert np.array_equal(data[untouched], wanted[name][untouched]), name


def test_fault_11_odd_but_good_images_are_seen_as_they_are(odd_store: tuple[Path, dict[str, str]]) -> None:
    """A PNG named .jpg, a gzipped JPEG, a rotated one: labelled like the plain photo they hold."""
    store, kinds = odd_store
    arrays, row = all_arrays(store), {kind: keys_of(store).index(name) for name, kind in kinds.items()}
    features = next(data for name, data in arrays.items() if name.startswith("students/")).astype(np.float32)
    assert features[row["gzipped"]] @ features[row["exif-rotated"]] > 0.999
    assert features[row["gzipped"]] @ features[row["png-named-jpg"]] > 0.98
    assert features[row["gzipped"]] @ features[row["transparent"]] > 0.98
    assert features[row["gzipped"]] @ features[row["one-pixel"]] < 0.99


def test_fault_11_a_chunk_of_failures_only(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """Nine photos in a row that cannot be decoded: the chunk is committed, read and verified like any other."""
    names = list(world.photos)
    broken = odd_world(tmp_path / "world", world.photos, dict.fromkeys(names[9:18], b"broken"))
    result = teach_inline(broken, tmp_path / "a.zarr", teacher, students=(student,), top_k=5, max_failed_share=0.2)
    assert (result.rows_ok, result.rows_failed) == (61, 9)
    assert LabelStore.open(tmp_path / "a.zarr").record(LABELS, 1) is not None
    assert verify(VerifyRequest(labels=tmp_path / "a.zarr"), Silent()).ok


def test_fault_11_too_many_failures_stop_the_run_each_time(world: World, teacher: str, tmp_path: Path) -> None:
    """Above --max-failed-share: exit 3 with the count and where the reasons are; asking again does not wash it away."""
    names = list(world.photos)
    broken = odd_world(tmp_path / "world", world.photos, dict.fromkeys(names[::9], b"broken"))
    for _ in range(3):
        with pytest.raises(DataError, match=r"images failed.*max.failed.share.* 0\.05.*failures\.jsonl") as caught:
            teach_inline(broken, tmp_path / "a.zarr", teacher, top_k=5, max_failed_share=0.05)
        assert caught.value.hint
    result = teach_inline(broken, tmp_path / "a.zarr", teacher, top_k=5, max_failed_share=0.2)
    assert (result.rows_ok, result.rows_failed) == (62, 8)


# Fault 12: hostile archives


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of any type."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, len(data)
    return entry, data


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], style: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of such entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def sample(name: str) -> tuple[tuple[tarfile.TarInfo, bytes], ...]:
    """An image and its label."""
    return member(f"{name}.jpg", data=encoded(PHOTO)), member(f"{name}.cls", data=b"0")


def with_size(data: bytes, size: int) -> bytes:
    """The first header with another size, and a checksum that fits."""
    field = (b"\x80" + size.to_bytes(11, "big")) if size >= 8**11 else f"{size:011o}\0".encode()
    header = bytearray(data[:512])
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data[512:]


def scan(root: Path, data: bytes) -> list[str]:
    """The keys found in this archive."""
    root.mkdir(exist_ok=True)
    (root / "wds").mkdir(exist_ok=True)
    (root / "classes.tsv").write_text("n1\tfox\n")
    (root / "wds/a.tar").write_bytes(data)
    (root / "m.toml").write_text(
        'schema = 1\nname = "m"\ntitle = "m"\nclasses = "classes.tsv"\n[splits.train]\n'
        'format = "webdataset"\npath = "wds/*.tar"\n'
    )
    index = build_index(load_manifest(str(root / "m.toml")), "train", root, Silent())
    return [index.key(i) for i in range(len(index))]


PASSED_OVER = {
    "symbolic link": member("evil.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("evil.jpg", tarfile.LNKTYPE, "../../secret"),
    "device": member("evil.jpg", tarfile.CHRTYPE),
    "pipe": member("evil.jpg", tarfile.FIFOTYPE),
    "folder": member("evil.jpg", tarfile.DIRTYPE),
}


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_fault_12_what_is_no_plain_file_is_passed_over(kind: str, tmp_path: Path) -> None:
    """Links, devices, pipes, folders that carry an image's name: never followed, never opened."""
    assert scan(tmp_path, tar_of(PASSED_OVER[kind], *sample("good"))) == ["good"]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../evil"])
def test_fault_12_names_that_leave_the_folder_are_only_keys(name: str, tmp_path: Path) -> None:
    """Members are read by byte range inside the archive: a name is never a path, and no file appears anywhere."""
    before = {path for path in tmp_path.parent.rglob("*")}
    assert len(scan(tmp_path / "w", tar_of(*sample(name), *sample("good")))) == 2
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.parent.rglob("*")) - before}
    assert new == {"w", "w/wds", "w/wds/a.tar", "w/classes.tsv", "w/m.toml"}


def test_fault_12_sparse_members_are_passed_over(tmp_path: Path) -> None:
    """Their bytes do not lie in one piece; both ways of writing them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("evil.jpg")
        entry.size = 512
        entry.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,512",
            "GNU.sparse.size": "1099511627776",
        }
        tar.addfile(entry, io.BytesIO(bytes(512)))
        for entry, data in sample("good"):
            tar.addfile(entry, io.BytesIO(data))
    assert scan(tmp_path, buffer.getvalue()) == ["good"]


@pytest.mark.parametrize("size", [10**6, 8**11 - 1, 2**40, 2**62, 2**80])
def test_fault_12_a_header_that_claims_too_much_is_refused(size: int, tmp_path: Path) -> None:
    """A member larger than its archive: a data error that names the archive, and no memory is asked for."""
    with pytest.raises(DataError, match="a.tar"):
        scan(tmp_path, with_size(tar_of(*sample("good")), size))


@pytest.mark.parametrize("size", [10**6, 2**40, 2**62, 2**80])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_fault_12_a_name_header_that_claims_too_much_is_refused(kind: bytes, size: int, tmp_path: Path) -> None:
    """The same for the hidden members that hold long names, which tarfile reads whole."""
    with pytest.raises(DataError, match="a.tar"):
        scan(tmp_path, with_size(tar_of(member("x", kind, data=b"y" * 10), *sample("good")), size))


def test_fault_12_names_that_are_no_text_are_refused_or_kept(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in a name: a data error that names the archive, or a key; never a crash."""
    data = tar_of(*sample("good"), *sample("caf#"), style=tarfile.USTAR_FORMAT)
    raw = bytearray(data)
    for start in range(0, len(raw), 512):
        if raw[start : start + 4] == b"caf#":
            raw[start + 3] = 0xE9
            raw[start + 148 : start + 156] = b" " * 8
            raw[start + 148 : start + 156] = f"{sum(raw[start : start + 512]):06o}\0 ".encode()
    try:
        assert len(scan(tmp_path, bytes(raw))) == 2
    except DataError as problem:
        assert "a.tar" in str(problem)


@pytest.mark.parametrize("seed", range(3))
def test_fault_12_changed_headers_never_crash(seed: int, tmp_path: Path) -> None:
    """100 random changes in headers, checksums made to fit: keys or a data error."""
    sound, rng = tar_of(*sample("good"), *sample("more")), np.random.default_rng(seed)
    with tarfile.open(fileobj=io.BytesIO(sound)) as tar:
        starts = [entry.offset for entry in tar]
    for _ in range(100):
        data = bytearray(sound)
        start = int(rng.choice(starts))
        place = start + int(rng.integers(0, 350))
        data[place] = int(rng.integers(256))
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = f"{sum(data[start : start + 512]):06o}\0 ".encode()
        try:
            scan(tmp_path, bytes(data))
        except DataError:
            continue


def test_fault_12_a_link_in_an_image_folder_cannot_reach_a_device(world: World, tmp_path: Path) -> None:
    """Pipes and links to devices that carry an image's name are no images: reading one would never end."""
    root = tmp_path / "world"
    broken = worlds.make_world(root, world.photos)
    os.mkfifo(root / "folders/n01/pipe.jpg")
    os.symlink("/dev/zero", root / "folders/n01/zero.jpg")
    index = build_index(load_manifest(broken.manifest("folders")), "train", root, Silent())
    assert not [index.key(i) for i in range(len(index)) if "pipe" in index.key(i) or "zero" in index.key(i)]
    assert len(index) == len(world.photos)


def test_fault_12_nothing_of_ours_extracts_archives(project: Path) -> None:
    """No call of extract or extractall, in no file of the package."""
    calls = []
    for folder in ("pipeline", "stages", "cli"):
        for file in (project / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr in ("extract", "extractall", "unpack_archive"):
                    calls.append(f"{file.name}:{node.lineno}")
    assert calls == []
