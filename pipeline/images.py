"""Read images by byte range from archives that are never extracted, and decode them within limits.

It does not resize or normalise: each model's own open_clip transform does, on the decoded image as it is.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from teachonce.errors import DataError
from teachonce.sample_index import SampleIndex

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000  # 192 MB decoded; the largest ImageNet photos are below half of it
MAX_OPEN = 32  # files that one thread keeps open
_GZIP_MAGIC = b"\x1f\x8b"  # 26 members of ImageNet fall11 are gzip-compressed JPEGs

OK, UNDECODABLE, TOO_LARGE = 0, 1, 2
# What Pillow raises on broken input; errors of reading the archive itself are not among them and do stop the task.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


@dataclass(frozen=True)
class ImageFault:
    """Why a sample gave no image."""

    status: int
    reason: str


class ImageReader:
    """Reads and decodes the samples of an index; safe to share between threads. Close it, or use it in `with`."""

    def __init__(self, index: SampleIndex, root: Path) -> None:
        self._index = index
        self._root = root
        self._local = threading.local()
        self._opened: set[io.FileIO] = set()  # of all threads, to close them

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; no thread may be reading."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()

    def name(self, sample: int) -> str:
        """The last part of a sample's key, which is the same in every layout of the archives."""
        return self._index.key(sample).rpartition("/")[2]

    def read(self, sample: int) -> bytes:
        """The bytes of one sample.

        Raises:
            DataError: the archive is gone or shorter than when it was indexed.
        """
        index = self._index
        archive = self._root / index.archives[int(index.archive[sample])]
        size = int(index.size[sample])
        if archive.is_dir():
            archive = archive / index.key(sample).rpartition("/")[2]
        data = os.pread(self._file(archive), size, int(index.offset[sample]))
        if len(data) != size:
            raise DataError(
                f"{archive}: the sample '{index.key(sample)}' should have {size} bytes, found {len(data)}",
                hint="the archive changed since it was indexed; restore it",
            )
        return data

    def _file(self, path: Path) -> int:
        files: OrderedDict[Path, io.FileIO] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
        if path not in files:
            try:
                files[path] = io.FileIO(path)
                self._opened.add(files[path])
            except OSError as problem:
                raise DataError(f"cannot open {path}: {problem.strerror}", hint="restore the archive") from problem
            if len(files) > MAX_OPEN:
                oldest = files.popitem(last=False)[1]
                self._opened.discard(oldest)
                oldest.close()
        files.move_to_end(path)
        return files[path].fileno()


def decode(data: bytes) -> Image.Image | ImageFault:
    """Decode a JPEG, PNG or WebP, gzip-compressed or not.

    EXIF orientation is not applied: open_clip's transforms do not apply it either.
    """
    try:
        if data.startswith(_GZIP_MAGIC):
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_PIXELS)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            return ImageFault(TOO_LARGE, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
        image.load()
        return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as problem:
        return ImageFault(TOO_LARGE, str(problem))
    except DECODE_ERRORS as problem:
        return ImageFault(UNDECODABLE, f"{type(problem).__name__}: {problem}")
