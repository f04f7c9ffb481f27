"""Read images by byte range from archives that are never extracted, and decode them within limits.

This module does not resize or normalise: each model's own open_clip transform does so, on the decoded image as it is.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import struct
import threading
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from teachonce.core.files import is_remote
from teachonce.core.outside import open_plain
from teachonce.data.formats import in_bytes, is_cut, kind_of, pillow_formats, plugin_for
from teachonce.data.index import SampleIndex
from teachonce.data.tars import linked_names
from teachonce.errors import DataError
from teachonce.objects.remote import is_folder, read_range

if TYPE_CHECKING:
    from teachonce.data.parquet import ParquetRows

MAX_PIXELS = 64_000_000  # 192 MB decoded; the largest ImageNet photos have less than half as many pixels
MOST_STRETCHED = 1000  # long side over short side: resized to 224 pixels on the short side such an image takes 150 MB
HEADER = 512  # bytes of a tar header, which lies right before its member
BACKOFF = (0.05, 0.2, 0.8, 1.6, 3.2)  # seconds between tries of a read that failed
NOT_READABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL)  # trying again changes nothing
MAX_OPEN = 32  # files that one thread keeps open
_GZIP_MAGIC = b"\x1f\x8b"  # 26 members of ImageNet fall11 are gzip-compressed JPEGs

OK, UNDECODABLE, TOO_LARGE = 0, 1, 2
# Pillow raises these on broken input. Errors of reading the archive itself are not among them: those stop the task.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# TIFF and the plug-ins raise more. A model raises these too, so they tell of an image only while no model is at work.
_DECODER_ERRORS = (*DECODE_ERRORS, KeyError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class ImageFault:
    """Why a sample gave no image."""

    status: int
    reason: str


class ImageReader:
    """Read and decode the samples of an index. Threads may share a reader; close it, or use it in `with`."""

    def __init__(self, index: SampleIndex, root: Path) -> None:
        self._index = index
        self._root = root
        self._archives: dict[int, tuple[str, Path]] = {}
        self._local = threading.local()
        self._opened: set[IO[bytes]] = set()  # files of all threads, kept here so that they can be closed
        self._opening = threading.Lock()
        self._parquet: ParquetRows | None = None
        self._links: dict[Path, dict[int, set[str]]] = {}

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; no thread may be reading."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()
        if self._parquet is not None:
            self._parquet.close()

    def name(self, sample: int) -> str:
        """Return the last part of a sample's key, which is the same in every layout of the archives."""
        return self._index.key(sample).rpartition("/")[2]

    def read(self, sample: int) -> bytes:
        """Return the bytes of one sample. A read that a disk or network fails is tried again a few times.

        Raises:
            DataError: the archive is gone, shorter than when it was indexed, or holds something else there.
            OSError: reading failed on every try.
        """
        index = self._index
        kind, path = self._archive(int(index.archive[sample]))
        offset, size = int(index.offset[sample]), int(index.size[sample])
        if kind == "parquet":
            return self._rows().read(path, offset)
        if kind == "folder":
            path = path / index.key(sample).rpartition("/")[2]
        lead = HEADER if kind == "tar" and offset >= HEADER else 0
        data = self._retrying(path, offset - lead, size + lead)
        if len(data) != size + lead:
            raise DataError(
                f"{path}: the sample '{index.key(sample)}' should have {size} bytes, found {max(0, len(data) - lead)}",
                hint="the archive changed since it was indexed; restore it",
            )
        if lead and not (
            _is_header_of(data[:lead], self.name(sample), size)
            or (_is_header_of(data[:lead], "", size) and self._is_link(path, offset, self.name(sample)))
        ):
            raise DataError(
                f"{path}: what lies before byte {offset} is not the header of '{index.key(sample)}' with {size} bytes",
                hint="the archive was packed anew since it was indexed; restore the old one, or start another store",
            )
        return data[lead:]

    def _is_link(self, path: Path, offset: int, name: str) -> bool:
        """Whether an archive has a link of this name to the file at this place; its headers are read once for that."""
        with self._opening:
            if path not in self._links:
                self._links[path] = {}
                with contextlib.suppress(DataError):  # then no link can be sound
                    self._links[path] = linked_names(path)
            names = self._links[path].get(offset, ())
        return any(link.rpartition("/")[2].startswith(name) for link in names)

    def _archive(self, number: int) -> tuple[str, Path]:
        """Say how an archive is read, and where it lies."""
        if number not in self._archives:
            path = self._root / self._index.archives[number]
            kind = path.suffix.lower().lstrip(".")
            if kind not in ("tar", "parquet"):
                kind = "folder" if is_folder(path) else "plain"
            self._archives[number] = kind, path
        return self._archives[number]

    def _rows(self) -> ParquetRows:
        with self._opening:
            if self._parquet is None:
                from teachonce.data.parquet import ParquetRows

                self._parquet = ParquetRows()
            return self._parquet

    def _retrying(self, path: Path, offset: int, size: int) -> bytes:
        if is_remote(path):
            return read_range(path, offset, size)
        for wait in BACKOFF:
            try:
                return os.pread(self._file(path), size, offset)
            except OSError:
                self._forget(path)  # a stale file handle stays stale, so the file is opened anew
                time.sleep(wait)
        try:
            return os.pread(self._file(path), size, offset)
        except OSError as problem:
            raise OSError(problem.errno, f"{problem.strerror}, {len(BACKOFF) + 1} times", str(path)) from problem

    def _forget(self, path: Path) -> None:
        file = getattr(self._local, "files", {}).pop(path, None)
        if file is not None:
            self._opened.discard(file)
            with contextlib.suppress(OSError):
                file.close()

    def _file(self, path: Path) -> int:
        files: OrderedDict[Path, IO[bytes]] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
        if path not in files:
            try:
                files[path] = open_plain(path)
                self._opened.add(files[path])
            except OSError as problem:
                if problem.errno not in NOT_READABLE:
                    raise  # of a disk or network, which may answer the next time
                raise DataError(f"cannot open {path}: {problem.strerror}", hint="restore the archive") from problem
            if len(files) > MAX_OPEN:
                oldest = files.popitem(last=False)[1]
                self._opened.discard(oldest)
                oldest.close()
        files.move_to_end(path)
        return files[path].fileno()


def _is_header_of(block: bytes, name: str, size: int) -> bool:
    """Check that a tar header announces a member of this size and, if the header holds the whole name, of this name."""
    try:
        field = block[124:136]
        # Sizes of 8 GiB and more, which no image has, are not octal; PAX headers may hold the size elsewhere.
        size_in_header = int(field.rstrip(b" \0") or b"0", 8)
    except ValueError:
        return False
    if size_in_header != size or block[257:262] != b"ustar":
        return size_in_header == size and block[257:262] == bytes(5)  # the header of a tar from before POSIX
    member = block[:100].rstrip(b"\0")
    if len(member) == 100 or not member.isascii() or not name.isascii():
        return True  # a long or foreign name is cut off in this header and stands whole in another one
    return member.rpartition(b"/")[2].startswith(name.encode())


def decode(data: bytes) -> Image.Image | ImageFault:
    """Decode an image of one of `pillow_formats`, which may be gzip-compressed; of an animation, the first frame.

    EXIF orientation is not applied, because open_clip's transforms do not apply it either. Grey images of 1, 16 or 32
    bits become grey ones of 8 bits, which is all that those transforms can see.
    """
    try:
        if data.startswith(_GZIP_MAGIC):
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_PIXELS)
        image = Image.open(io.BytesIO(data), formats=pillow_formats())
        if image.width * image.height > MAX_PIXELS:
            return ImageFault(TOO_LARGE, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
        if max(image.size) > MOST_STRETCHED * min(image.size):
            return ImageFault(
                TOO_LARGE,
                f"{image.width} x {image.height} pixels: the long side is over {MOST_STRETCHED} times the short "
                "one, so that resizing the short side to a model's input would take gigabytes",
            )
        image.load()
        return in_8_bits(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        return ImageFault(TOO_LARGE, str(problem))
    except _DECODER_ERRORS as problem:
        return ImageFault(UNDECODABLE, _reason(problem, data))


def _reason(problem: Exception, data: bytes) -> str:
    """Say why bytes gave no image, and what the bytes are."""
    if not data:
        return "not an image: there are no bytes"
    kind = kind_of(data)
    plugin = plugin_for(kind.lower())
    if is_cut(data, kind):
        bytes_are = f"the bytes begin as {kind} and break off before their end mark"
    elif plugin is not None and not plugin.works:
        bytes_are = f"the bytes are {kind}, which `pip install {plugin.package}` reads"
    else:
        bytes_are = f"the bytes are {in_bytes(data)}"
    if isinstance(problem, UnidentifiedImageError):  # Pillow's own words are the address of an object
        return f"not an image that Pillow reads: {bytes_are}"
    return f"{type(problem).__name__}: {problem}; {bytes_are}"


def in_8_bits(image: Image.Image) -> Image.Image | ImageFault:
    """Turn grey values of another depth into bytes: open_clip's transforms would cut all above 255 to white.

    Integers and floats of 32 bits do not say which value is white: up to 1 (floats), 255 and 65,535 are told apart by
    the largest value of the image.
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())
    if image.mode != "F" and (image.mode != "I" or image.format == "PNG"):
        white = 65535.0  # these are 16 bits, however dark the image is
    else:
        white = next((top for top in (1.0, 255.0, 65535.0) if highest <= top and (top > 1 or image.mode == "F")), 0.0)
    if not (lowest >= 0 and highest <= white):  # NaN is not in any range
        return ImageFault(
            UNDECODABLE, f"grey values from {lowest:g} to {highest:g}: which of them is white cannot be known"
        )
    return Image.fromarray((values * np.float32(255 / white)).round().astype(np.uint8))
