"""What a file is by its name and by its first bytes, and what a plug-in of Pillow adds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from PIL import Image
from worlds import encoded, make_photo

from teachonce.data import formats
from teachonce.data.formats import image_endings, is_image_kind, is_leftover, kind_of, looks_like_image

PHOTO = make_photo(1, 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_that_is_read_is_known_by_its_first_bytes(kind: str) -> None:
    """A sound image is never said to be none."""
    data = encoded(PHOTO, kind)
    assert kind_of(data[: formats.HEAD]).upper() == kind and is_image_kind(kind_of(data))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "none"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypmif1", "HEIC"),
        (b"\0\0\0\x20ftypisom", "a video (MP4 or QuickTime)"),
        (b"RIFF1234AVI ", "a video (AVI)"),
        (b'{"error": 404}', "JSON"),
        (b"<svg xmlns=", "SVG"),
        (b"P6 3 3 255 ", "PPM"),
        ("caf\u00e9 ".encode() * 12, "text"),
        (b"caf\xe9 au lait", "of no known format"),
        (b"\x1b[31m", "of no known format"),
    ],
)
def test_what_a_file_is(data: bytes, kind: str) -> None:
    """In words that a person knows."""
    assert kind_of(data) == kind and (kind == "AVIF" or not is_image_kind(kind))


def test_leftovers_of_systems_are_known_in_any_folder() -> None:
    """By file, by folder, in any case; names that only look alike are files of the person."""
    for path in ("._a.jpg", "x/._a.jpg", "__MACOSX/x/a.jpg", "x/@eaDir/a.jpg/t.jpg", ".DS_Store", "X/THUMBS.DB"):
        assert is_leftover(path), path
    for path in ("a.jpg", ".a.jpg", "_a.jpg", "x/eaDir/a.jpg", "thumbs/a.jpg", "MACOSX.jpg"):
        assert not is_leftover(path), path


@pytest.fixture
def heif_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module that stands in for pillow_heif, and tells Pillow that a format of that name is there."""
    module = ModuleType("pillow_heif")
    module.__spec__ = ModuleSpec("pillow_heif", None)
    module.register_heif_opener = lambda: Image.register_open("HEIF", Image.OPEN["BMP"][0])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    image_endings.cache_clear()
    formats.pillow_formats.cache_clear()
    yield
    Image.OPEN.pop("HEIF", None)
    image_endings.cache_clear()
    formats.pillow_formats.cache_clear()


def test_without_a_plugin_heic_looks_like_an_image_and_is_not_read() -> None:
    """The package is named where such files are counted."""
    if formats.PLUGINS[0].works:
        pytest.skip("pillow-heif is installed here")
    assert looks_like_image("a.HEIC") and "heic" not in image_endings() and not is_image_kind("HEIC")
    assert "HEIF" not in formats.pillow_formats()


@pytest.mark.usefixtures("heif_plugin")
def test_with_its_plugin_heic_is_read() -> None:
    """Installing the package is all that a person does."""
    assert "heic" in image_endings() and is_image_kind("HEIC")
    Image.init()
    assert "HEIF" in formats.pillow_formats() and "HEIF" in Image.OPEN
