"""Paths of URLs, with those of pathlib's methods that reading data needs.

Such a path is no pathlib.Path and no os.PathLike: what needs a real file refuses it instead of looking on this disk.
"""

from __future__ import annotations

import fnmatch
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from teachonce.errors import UsageError
from teachonce.objects.bucket import BucketObjects
from teachonce.objects.seam import Entry

STREAM_BYTES = 1 << 16  # fetched at a time where a file is read in pieces, unless the reader knows better


class Folder:
    """Stands for what a listing knows of a folder: that it is one."""


@dataclass(frozen=True)
class Stat:
    """What is known of a file: bytes, and the time of its last change in nanoseconds; both are 0 of a folder."""

    st_size: int
    st_mtime_ns: int


@functools.total_ordering
@dataclass(frozen=True, eq=False)
class RemotePath:
    """SCHEME://BUCKET/KEY. An object is a file; whatever has objects below it is a folder.

    Every method that asks the server raises EnvironmentFault or DataError for what it refuses.

    Attributes:
        scheme: s3, gs or az.
        bucket: its name.
        key: below the bucket; empty for the bucket itself.
        known: what a listing said of it; None where nobody has asked.
    """

    scheme: str
    bucket: str
    key: str = ""
    known: Entry | Folder | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __repr__(self) -> str:
        return f"RemotePath('{self}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return (self.scheme, self.bucket, self.key.split("/")) < (other.scheme, other.bucket, other.key.split("/"))

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, more: str) -> RemotePath:
        return self._at(str(PurePosixPath(self.key) / more) if self.key else str(PurePosixPath(more)))

    @property
    def objects(self) -> BucketObjects:
        """The bucket."""
        return BucketObjects(self.scheme, self.bucket)

    @property
    def name(self) -> str:
        """The last part; the bucket's name for the bucket."""
        return PurePosixPath(self.key).name or self.bucket

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last ending of the name."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket, the bucket."""
        return self._at(str(PurePosixPath(self.key).parent))

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket's URL, then the parts of the key."""
        return f"{self.scheme}://{self.bucket}", *PurePosixPath(self.key).parts

    def resolve(self) -> RemotePath:
        """The place itself: a URL is absolute, and a bucket has no links."""
        return self

    def with_name(self, name: str) -> RemotePath:
        """Another name in the same folder."""
        return self.parent / name

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """The path below another one.

        Raises:
            ValueError: it does not lie there.
        """
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            raise ValueError(f"{self} does not lie below {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._facts() is not None

    def is_dir(self) -> bool:
        """Whether there is anything below this name."""
        return isinstance(self.known, Folder) if self.known is not None else self.objects.is_folder(self.key)

    def exists(self) -> bool:
        """Whether there is an object of this name, or anything below it."""
        return self.is_file() or self.is_dir()

    def stat(self) -> Stat:
        """Its size and time.

        Raises:
            FileNotFoundError: there is nothing of this name.
        """
        facts = self._facts()
        if facts is not None:
            return Stat(facts.size, facts.modified_ns)
        if not self.is_dir():
            raise FileNotFoundError(f"{self} does not exist")
        return Stat(0, 0)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in the folder, files and folders.

        Raises:
            FileNotFoundError: nothing does.
        """
        files, folders = self.objects.listing(self.key)
        if not files and not folders:
            raise FileNotFoundError(f"{self} does not exist")
        yield from (self._at(folder, Folder()) for folder in folders)
        yield from (self._at(entry.key, entry) for entry in files)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """All objects below whose name fits; folders are not among them."""
        for entry in self.objects.list(self.key):
            path = self._at(entry.key, entry)
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What fits a relative pattern, part by part; `**` stands for any number of folders."""
        yield from _matches(self, PurePosixPath(pattern).parts)

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
        """
        stored = self.objects.get(self.key) if self.key else None
        if stored is None:
            raise FileNotFoundError(f"{self} does not exist")
        return stored.data

    def open(self, mode: str = "rb", ahead: int = STREAM_BYTES) -> IO[bytes]:
        """The object for reading.

        Args:
            mode: only `rb`.
            ahead: bytes that are fetched at a time.

        Raises:
            FileNotFoundError: there is no such object.
            UsageError: another mode.
        """
        if mode != "rb":
            raise UsageError(f"{self} is only read, and was to be opened with '{mode}'")
        facts = self._facts()
        if facts is None:
            raise FileNotFoundError(f"{self} does not exist")
        return io.BufferedReader(_Stream(self, facts.size), ahead)

    def _facts(self) -> Entry | None:
        if self.known is not None:
            return self.known if isinstance(self.known, Entry) else None
        return self.objects.facts(self.key) if self.key else None

    def _at(self, key: str, known: Entry | Folder | None = None) -> RemotePath:
        return RemotePath(self.scheme, self.bucket, "" if key == "." else key.strip("/"), known)


class _Stream(io.RawIOBase):
    """An object as a file; what it reads is fetched by byte range."""

    def __init__(self, path: RemotePath, size: int) -> None:
        super().__init__()
        self._path, self._size, self._at = path, size, 0
        self.name = str(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._path.objects.get_range(self._path.key, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _matches(folder: RemotePath, parts: tuple[str, ...]) -> Iterator[RemotePath]:
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if not any(sign in first for sign in "*?["):
        following = folder / first
        if rest or following.exists():
            yield from _matches(following, rest)
        return
    if first == "**":
        yield from _matches(folder, rest)
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return
    for path in entries:
        if first == "**":
            yield from _matches(path, parts) if path.is_dir() else ()
        elif fnmatch.fnmatchcase(path.name, first) and (not rest or path.is_dir()):
            yield from _matches(path, rest)


def as_path(path: RemotePath) -> Path:
    """The same, for functions that take either kind of path and ask `is_remote` where it matters."""
    return cast(Path, path)
