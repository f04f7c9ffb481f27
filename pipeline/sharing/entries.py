"""The files of a pack, one after the other: read from a tar or a folder, written to a tar or a folder.

This module does not know which files a pack must have: `packing` does. A tar is never extracted: bytes are
read by range, and only plain files that lie one behind the other are taken for a pack.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from teachonce.core.outside import open_plain
from teachonce.core.sums import is_plain
from teachonce.data.places import Part
from teachonce.data.tars import plain_members
from teachonce.errors import DataError, IntegrityError, UsageError

BLOCK = 1 << 20  # bytes of the one buffer that files go through
FOREIGN = "give what `teachonce pack` wrote, from a source that you trust"
AGAIN = "copy or download the pack again"


class Readable(Protocol):
    """What can be read in pieces."""

    def read(self, count: int = ..., /) -> bytes:
        """At most so many bytes; none at the end."""


class Entry(NamedTuple):
    """A file of a pack, not yet opened."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


class Hashed:
    """Reads exactly `size` bytes of a file and digests them on their way."""

    def __init__(self, source: Readable, size: int, name: str) -> None:
        self._source, self._left, self._name = source, size, name
        self._sha = hashlib.sha256()

    def read(self, count: int = BLOCK, /) -> bytes:
        """At most so many bytes.

        Raises:
            IntegrityError: the file ends too early.
        """
        block = self._source.read(min(count, self._left))
        self._left -= len(block)
        self._sha.update(block)
        if not block and self._left and count:
            raise IntegrityError(f"{self._name} became shorter while it was read", hint="let no other program write it")
        return block

    def finish(self) -> str:
        """SHA-256 (hex) of the whole file; reads what nobody has read."""
        while self.read(BLOCK):
            pass
        return self._sha.hexdigest()


class Target(Protocol):
    """Where files go."""

    def add(self, name: str, size: int, source: Readable) -> None:
        """Take `size` bytes under a name that has been checked."""


def plain_member(name: str, size: int) -> tarfile.TarInfo:
    """The member of a tar that is the same for the same content."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


class TarTarget:
    """A tar that is the same for the same content: members have no owner, no time, and one mode."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, size: int, source: Readable) -> None:
        """Append a file."""
        self._tar.addfile(plain_member(name, size), source)
        self._tar.members = []  # type: ignore[attr-defined]  # a store may have a hundred thousand

    def close(self) -> None:
        """Write the end mark."""
        self._tar.close()


class FolderTarget:
    """A folder that is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, size: int, source: Readable) -> None:
        """Write a file."""
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "xb") as written:
            while block := source.read(BLOCK):
                written.write(block)


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Name (with `/`) and bytes of every file below a folder, sorted by name.

    Raises:
        IntegrityError: a link, a device, or a name that other systems could not take: nothing like it was written.
    """
    files = []
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink() or not (file.is_file() or file.is_dir()) or not is_plain(name):
            raise IntegrityError(
                f"{str(file)!r} is a link, no file, or has an odd name: it cannot be packed",
                hint="take it out of the folder: teachonce writes nothing like it",
            )
        if file.is_file():
            files.append((name, file.stat().st_size))
        elif not any(file.iterdir()):
            raise IntegrityError(f"{str(file)!r} is an empty folder, which is in no list", hint="remove it")
    return sorted(files)


def entries_of(pack: Path, first: str, last: str) -> Iterator[Entry]:
    """The files of a pack in their order; those of a folder by name, between `first` and `last`.

    Raises:
        UsageError: there is no such pack.
        IntegrityError: the tar is damaged, or holds anything but plain files.
    """
    if pack.is_file():
        yield from _tar_entries(pack)
    elif pack.is_dir():
        files = dict(files_of(pack))
        for name in sorted(files, key=lambda name: (name != first, name == last, name)):
            yield Entry(name, files[name], _opener(pack / name, 0))
    else:
        raise UsageError(f"{pack} is no file or folder", hint="give what `teachonce pack` wrote")


def _tar_entries(pack: Path) -> Iterator[Entry]:
    end = 0
    try:
        for member in plain_members(Part(pack, pack.name)):
            if member.header != end:
                raise IntegrityError(
                    f"{pack} holds something that is no plain file (a link, a device, a folder) "
                    f"at byte {end}; nothing was written",
                    hint=FOREIGN,
                )
            end = member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            yield Entry(member.name, member.size, _opener(pack, member.offset))
            head = plain_member(member.name, member.size).tobuf(tarfile.PAX_FORMAT)
            _require_bytes(pack, member.header, member.offset, head)
            _require_bytes(pack, member.offset + member.size, end)
    except DataError as problem:
        raise IntegrityError(problem.message, hint=AGAIN) from problem
    size = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    if pack.stat().st_size != size:
        raise IntegrityError(f"{pack} holds something behind its last file", hint=FOREIGN)
    _require_bytes(pack, end, size)


def _require_bytes(pack: Path, start: int, stop: int, wanted: bytes | None = None) -> None:
    """Refuse a tar whose bytes from start to stop are others than `teachonce pack` writes there: zeros by default."""
    with open_plain(pack) as file:
        file.seek(start)
        if file.read(stop - start) != (bytes(stop - start) if wanted is None else wanted):
            raise IntegrityError(f"{pack} holds something between its files, at byte {start}", hint=FOREIGN)


def _opener(file: Path, place: int) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        stream = open_plain(file)
        stream.seek(place)
        return stream

    return opened
