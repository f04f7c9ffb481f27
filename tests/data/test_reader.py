"""Images are read by byte range and decoded within limits; whatever is wrong with one is a reason, not a crash."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import numpy as np
import pytest
import worlds
from PIL import Image
from worlds import encoded, make_photo

from teachonce.data.index import SampleIndex
from teachonce.data.reader import MAX_OPEN, TOO_LARGE, UNDECODABLE, ImageFault, ImageReader, decode, in_8_bits
from teachonce.errors import DataError

PHOTO = make_photo(1, 2)


def good(data: bytes) -> Image.Image:
    """The decoded image; fails when there is none."""
    image = decode(data)
    assert isinstance(image, Image.Image), image
    return image


def bad(data: bytes) -> ImageFault:
    """Why there is no image; fails when there is one."""
    fault = decode(data)
    assert isinstance(fault, ImageFault), fault
    assert fault.reason
    return fault


def test_lossless_formats_decode_to_the_same_pixels() -> None:
    """PNG and lossless WebP give back what was written."""
    for data in (encoded(PHOTO, "PNG"), encoded(PHOTO, "WEBP", lossless=True)):
        assert np.array_equal(np.asarray(good(data)), np.asarray(PHOTO))


def test_a_gzipped_jpeg_decodes_like_the_jpeg() -> None:
    """26 members of ImageNet's fall 2011 release are such."""
    data = encoded(PHOTO)
    assert np.array_equal(np.asarray(good(gzip.compress(data))), np.asarray(good(data)))


@pytest.mark.parametrize("cut", [0.0, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_undecodable(kind: str, cut: float) -> None:
    """No half image with grey below passes for a photo."""
    data = encoded(PHOTO, kind)
    assert bad(data[: int(cut * len(data))]).status == UNDECODABLE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x1f\x8b",
        gzip.compress(b"hello"),
        gzip.compress(b"x" * 999)[:20],
        b"<svg/>",
        b"%PDF-1.4",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_image_is_undecodable(data: bytes) -> None:
    """Text, empty files, broken gzip."""
    assert bad(data).status == UNDECODABLE


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "EPS"])
def test_formats_that_are_not_declared_are_refused(kind: str) -> None:
    """Each further decoder is a further attack surface; the formats that photos come in suffice."""
    assert bad(encoded(PHOTO, kind)).status == UNDECODABLE


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_further_lossless_formats_are_read(kind: str) -> None:
    """What scanners and older programs write."""
    assert np.array_equal(np.asarray(good(encoded(PHOTO, kind))), np.asarray(PHOTO))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_is_read(kind: str) -> None:
    """Of an animation, and of a file with pages."""
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = good(data).convert("RGB").getpixel((5, 5))  # type: ignore[misc]
    assert red > 250 and green < 5 and blue < 5


HEIC = b"\0\0\0\x18ftypheic" + bytes(80)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "there are no bytes"),
        (b"<!DOCTYPE html><html>404", "the bytes are HTML (a web page)"),
        (b"\n <HTML>", "the bytes are HTML (a web page)"),
        (HEIC, "the bytes are HEIC, which `pip install pillow-heif` reads"),
        (bytes(100), "the bytes are zeros"),
        (b"%PDF-1.4", "the bytes are PDF"),
        (b"\x01\x02\x03\x04", "the bytes are of no known format (they begin 01 02 03 04)"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (encoded(PHOTO)[:400], "the bytes begin as JPEG and break off before their end mark"),
        (encoded(PHOTO, "PNG")[:400], "the bytes begin as PNG and break off"),
        (gzip.compress(b"<?xml?>"), "the bytes are XML"),
        (gzip.compress(encoded(PHOTO))[:300], "the bytes are gzip"),
    ],
)
def test_a_reason_says_what_the_bytes_are(data: bytes, words: str) -> None:
    """Never the address of an object, which is another one in each run."""
    reason = bad(data).reason
    assert words in reason and " at 0x" not in reason


@pytest.mark.parametrize("size", [(9000, 8000), (10_000, 10_000), (30_000, 7_000)])
def test_a_bomb_is_too_large_before_it_is_decoded(size: tuple[int, int]) -> None:
    """Just above our limit, above Pillow's warning, above Pillow's error: a reason, and no memory spent."""
    tiny = encoded(Image.new("1", (8, 8)), "PNG")
    start = tiny.index(b"IHDR")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">II", *size) + tiny[start + 12 : start + 17]
    bomb = tiny[:start] + header + struct.pack(">I", zlib.crc32(header)) + tiny[start + 21 :]
    fault = bad(bomb)
    assert fault.status == TOO_LARGE


def test_a_gzip_bomb_is_bounded() -> None:
    """Decompression stops at the pixel limit: what comes out is no image."""
    assert bad(gzip.compress(bytes(200_000_000), 1)).status == UNDECODABLE


def test_orientation_is_left_as_it_is() -> None:
    """open_clip's transforms ignore EXIF orientation; so do we, on both sides."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert good(encoded(PHOTO, exif=exif)).size == PHOTO.size


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_a_random_byte_never_crashes_the_decoder() -> None:
    """Hundreds of changed bytes in every format: an image or a reason."""
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(PHOTO, kind)
        for _ in range(170):
            broken = bytearray(data)
            broken[rng.integers(len(broken))] = rng.integers(256)
            assert isinstance(decode(bytes(broken)), (Image.Image, ImageFault))


def index_of_files(root: Path, files: int) -> SampleIndex:
    """One sample an archive, its number in every byte."""
    for i in range(files):
        (root / f"{i}.tar").write_bytes(bytes([i]) * 10)
    keys = [f"k{i}" for i in range(files)]
    return SampleIndex(
        tuple(f"{i}.tar" for i in range(files)),
        np.arange(files, dtype=np.uint32),
        np.full(files, 2, np.uint64),
        np.full(files, 5, np.uint64),
        np.zeros(files, np.int32),
        np.frombuffer("".join(keys).encode(), np.uint8),
        np.cumsum([len(key) for key in keys]).astype(np.uint64),
    )


def test_reading_more_archives_than_may_be_open(tmp_path: Path) -> None:
    """Files are closed as others are needed, in four threads at once."""
    files = 2 * MAX_OPEN + 5
    reader = ImageReader(index_of_files(tmp_path, files), tmp_path)
    wrong: list[int] = []

    def read_all(reader: ImageReader, seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, files, 300).tolist():
            if reader.read(i) != bytes([i]) * 5:
                wrong.append(i)

    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = [threading.Thread(target=read_all, args=(reader, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4 * MAX_OPEN
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1, "files are closed with the reader"
    assert reader.read(3) == bytes([3]) * 5, "a closed reader opens again what it needs"
    reader.close()


def test_an_archive_that_changed_or_went_is_a_data_error(tmp_path: Path) -> None:
    """The sample's key and both sizes, or the path: never bytes of something else."""
    index = index_of_files(tmp_path, 2)
    with ImageReader(index, tmp_path) as reader:
        (tmp_path / "0.tar").write_bytes(b"short")
        with pytest.raises(DataError, match=r"0\.tar: the sample 'k0' should have 5 bytes, found 3") as caught:
            reader.read(0)
        assert "changed" in caught.value.hint
        (tmp_path / "1.tar").unlink()
        with pytest.raises(DataError, match=r"cannot open .*1\.tar"):
            reader.read(1)


def test_a_photo_of_the_world_decodes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the other tests are built on is sound."""
    for data in list(worlds.session_world(tmp_path_factory).photos.values())[:7]:
        assert good(data).size == (48, 40)


def test_a_grey_png_of_another_depth_is_seen_like_its_8_bit_version() -> None:
    """Value by value, and in a mode that is resized as photos are."""
    grey = PHOTO.convert("L")
    deep, ink = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), grey.convert("1")
    for image, wanted in ((deep, grey), (ink, ink.convert("L"))):
        seen = good(encoded(image, "PNG"))
        assert seen.mode == "L" and np.array_equal(np.asarray(seen), np.asarray(wanted))


@pytest.mark.parametrize("mode", ["I;16B", "I;16L", "I", "F"])
def test_depths_that_other_formats_bring_are_seen_like_the_8_bit_version(mode: str) -> None:
    """TIFFs are big-endian, of 32 bits, or hold shares from 0 to 1."""
    photo = np.asarray(PHOTO.convert("L"))
    if mode == "F":
        image = Image.fromarray((photo / 255).astype(np.float32))
    else:
        kind, mode = {"I;16B": (">u2", "I;16B"), "I;16L": ("<u2", "I;16L"), "I": ("<i4", "I")}[mode]
        data = (photo.astype(np.int64) * 257).astype(kind).tobytes()
        image = Image.frombytes(mode, (photo.shape[1], photo.shape[0]), data)
    seen = in_8_bits(image)
    assert isinstance(seen, Image.Image) and seen.mode == "L"
    assert np.abs(np.asarray(seen).astype(int) - photo).max() <= 1


@pytest.mark.parametrize("values", [[[-5, 3]], [[0, 1 << 20]], [[float("nan"), 1.0]]])
def test_grey_values_whose_white_cannot_be_known_are_refused(values: list[list[float]]) -> None:
    kind = np.int32 if isinstance(values[0][0], int) else np.float32
    fault = in_8_bits(Image.fromarray(np.array(values, kind)))
    assert isinstance(fault, ImageFault) and "white" in fault.reason


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK", "P", "P with transparency", "L"])
def test_other_modes_of_8_bits_are_left_as_they_are(mode: str) -> None:
    """open_clip's own preprocessing makes RGB of them; what it makes is near the photo."""
    image = PHOTO.convert("P" if mode.startswith("P") else mode)
    options = {"transparency": bytes(range(256))} if "transparency" in mode else {}
    seen = good(encoded(image, "JPEG" if mode == "CMYK" else "PNG", **options))
    assert seen.mode == image.mode
    off = np.abs(np.asarray(seen.convert("RGB")).astype(int) - np.asarray(image.convert("RGB")))
    assert off.mean() < 8


@pytest.mark.parametrize(("size", "status"), [((1, 1000), 0), ((1001, 1), TOO_LARGE), ((1, 8_000_000), TOO_LARGE)])
def test_an_image_too_thin_to_be_resized_is_a_failed_image(size: tuple[int, int], status: int) -> None:
    """Its short side at 224 pixels would make gigabytes of it."""
    seen = decode(encoded(Image.new("L", size), "PNG"))
    assert (seen.status if isinstance(seen, ImageFault) else 0) == status
