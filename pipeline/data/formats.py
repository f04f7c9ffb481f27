"""Which files are images: by the endings of their names, by their first bytes, and with which plug-in of Pillow.

This module opens no file and decodes nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass

PLAIN_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp"})
"""Endings that keys of samples in archives leave out. The keys of images with any other ending keep it."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that Pillow reads by itself, by Pillow's names; of an animation the first frame is read."""

OTHER_ENDINGS = frozenset({"jpe", "jfif", "bmp", "tif", "tiff", "gif"})
HEAD = 64  # bytes at the beginning of a file that say what the file is


@dataclass(frozen=True)
class Plugin:
    """A package that teaches Pillow a further format."""

    format: str
    endings: frozenset[str]
    module: str
    package: str
    register: str = ""
    """The function of the module that announces the format to Pillow; empty where importing the module does so."""

    @property
    def built_in(self) -> bool:
        """Whether Pillow reads the format without the package."""
        from PIL import features

        feature = self.format.lower()
        return feature in features.modules and bool(features.check(feature))

    @property
    def works(self) -> bool:
        """Whether images of the format can be read on this machine."""
        return self.built_in or importlib.util.find_spec(self.module) is not None


PLUGINS = (
    Plugin("HEIF", frozenset({"heic", "heif", "hif"}), "pillow_heif", "pillow-heif", "register_heif_opener"),
    Plugin("AVIF", frozenset({"avif"}), "pillow_avif", "pillow-avif-plugin"),
)


@functools.cache
def image_endings() -> frozenset[str]:
    """Return the endings, in lower case, of files that are read as images on this machine."""
    return PLAIN_ENDINGS.union(OTHER_ENDINGS, *(plugin.endings for plugin in PLUGINS if plugin.works))


@functools.cache
def pillow_formats() -> tuple[str, ...]:
    """Announce installed plug-ins to Pillow; return the formats that images may have, by Pillow's names."""
    formats = list(FORMATS)
    for plugin in PLUGINS:
        if not plugin.works:
            continue
        if not plugin.built_in:
            module = importlib.import_module(plugin.module)
            if plugin.register:
                getattr(module, plugin.register)()
        formats.append(plugin.format)
    return tuple(formats)


def plugin_for(ending: str) -> Plugin | None:
    """Return the plug-in that reads files with this ending, installed or not."""
    return next((plugin for plugin in PLUGINS if ending in plugin.endings), None)


def extension(name: str) -> str:
    """Return what follows the last dot, in lower case."""
    return name.rpartition(".")[2].lower()


def looks_like_image(name: str) -> bool:
    """Whether a file is an image by its ending, also where the plug-in that reads it is not installed."""
    ending = extension(name)
    return ending in image_endings() or plugin_for(ending) is not None


# What systems and programs leave beside the files of a person, in lower case.
_LEFTOVERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        ".ds_store",
        ".appledouble",
        ".spotlight-v100",
        ".trashes",
        ".fseventsd",
        ".ipynb_checkpoints",
        ".thumbnails",
        ".directory",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)


def is_leftover(path: str) -> bool:
    """Whether a file was left by a system, such as `._photo.jpg`, or lies in a folder that was, such as `@eaDir`."""
    folder, _, name = path.rpartition("/")
    return _is_left(name) or (folder != "" and _in_leftovers(folder))


def _is_left(name: str) -> bool:
    return name.startswith("._") or name.lower() in _LEFTOVERS or name.endswith(":Zone.Identifier")


@functools.lru_cache(4096)
def _in_leftovers(folder: str) -> bool:
    return any(map(_is_left, folder.split("/")))


_GZIP = "gzip"
_IMAGES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\x1f\x8b": _GZIP,  # ImageNet has gzip-compressed JPEGs, and only reading one would tell
}
_OTHERS = {
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
    b"PK\x05\x06": "ZIP",
    b"8BPS": "Photoshop (PSD)",
    b"%!PS": "PostScript",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
    b"\x93NUMPY": "NumPy",
    b"\x89HDF": "HDF5",
    b"PAR1": "parquet",
    b"SQLite format 3": "SQLite",
    b"\0\5\x16\7": "AppleDouble (left by macOS)",
    b"\0\5\x16\0": "AppleSingle (left by macOS)",
    b"\x1aE\xdf\xa3": "a video (Matroska)",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"version https://git-lfs": "a pointer of Git LFS (the file itself was not fetched)",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim"), "HEIC")}
_BRANDS |= dict.fromkeys((b"heis", b"mif1", b"msf1"), "HEIC")
_UNKNOWN = "of no known format"


def kind_of(data: bytes) -> str:
    """Say what a file is by its first bytes, in a word or a few: `JPEG`, `HTML (a web page)`, `zeros`."""
    if not data:
        return "none"
    for known in (_IMAGES, _OTHERS):
        for signature, kind in known.items():
            if data.startswith(signature):
                return kind
    if data[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "a video (AVI)", b"WAVE": "a sound (WAV)"}.get(data[8:12], "RIFF")
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video (MP4 or QuickTime)")
    return _kind_of_text(data[:HEAD])


def _kind_of_text(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "zeros"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in ((b"<!doctype html", "HTML (a web page)"), (b"<html", "HTML (a web page)"), (b"<svg", "SVG")):
        if text.startswith(start):
            return kind
    if text.startswith(b"<"):
        return "XML"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return _UNKNOWN
    try:
        head.decode()
    except UnicodeDecodeError as problem:
        if problem.start < len(head) - 3:  # a letter of several bytes may be cut off at the end
            return _UNKNOWN
    return "JSON" if text[:1] in (b"{", b"[") else "text"


def in_bytes(data: bytes) -> str:
    """Say how a file begins where its format does not say more: the kind, or the first bytes in hexadecimal digits."""
    kind = kind_of(data)
    return f"{_UNKNOWN} (they begin {data[:8].hex(' ')})" if kind == _UNKNOWN else kind


def is_image_kind(kind: str) -> bool:
    """Whether a kind, as `kind_of` names it, is one that is read as an image on this machine."""
    if kind in ("HEIC", "AVIF"):
        return kind.lower() in image_endings()
    return kind == "WebP" or kind in _IMAGES.values()


def is_cut(data: bytes, kind: str) -> bool:
    """Whether an image lacks the mark with which images of its kind end."""
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
    return kind in ends and ends[kind] not in data[-4096:]
