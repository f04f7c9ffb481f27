"""Files that somebody names or sends: what lies in a folder, plain files and no others opened, tensors looked at before
they load.

A path from a manifest, an option or a folder out of a pack may lead to a pipe that never ends, to a device, or out of
its folder. What is refused here is an OSError, as when a file cannot be read, so whoever reads files needs no further
words for it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
MOST_HEADER = 64 << 20
"""Bytes of the header of a safetensors file; the format allows 100 MB."""
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""The types of tensors that this project reads."""


NO_ARRAY = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError)
"""What NumPy raises of a damaged .npy file: it reads the file's head as Python's own tokens."""


def require_plain(path: Path, inside: Path | None = None) -> int:
    """Refuse what is no plain file; links are followed.

    Args:
        path: of this machine.
        inside: a folder that came from outside: links in it may lead to other places in it, and nowhere else.

    Returns:
        Bytes of the file.

    Raises:
        OSError: it is not there, is a folder, a pipe, a device or a socket, lies outside, or no file system takes such
            a name.
    """
    try:
        status = os.stat(path)
        if inside is not None and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(inside)):
            raise OSError(errno.EINVAL, f"it is a link that leads out of {inside}", str(path))
    except ValueError:  # a NUL in it, or letters that no file system can spell
        raise OSError(errno.EINVAL, "no file system takes such a name", str(path)) from None
    _require_regular(status, path)
    return status.st_size


def open_plain(path: Path, inside: Path | None = None) -> IO[bytes]:
    """Open a plain file for reading; never waits for anybody to write into a pipe.

    Raises:
        OSError: as in `require_plain`, or it cannot be read.
    """
    require_plain(path, inside)  # before it is opened: opening a device may do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(handle), path)  # it may be another one since
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: Path, most: int, inside: Path | None = None) -> bytes:
    """The bytes of a plain file of a limited size.

    Raises:
        OSError: as in `open_plain`, or it has more bytes.
    """
    with open_plain(path, inside) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that such a file can have", str(path))
    return data


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind} and no plain file", str(path))


@dataclass(frozen=True)
class TensorSpec:
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    """As safetensors writes it: F32, I64."""
    shape: tuple[int, ...]


def tensor_header(file: Path) -> dict[str, TensorSpec]:
    """The tensors of a safetensors file by name, from its header alone: no tensor is read, nothing of its size is made.

    Raises:
        OSError: it is no plain file, or cannot be read.
        ValueError: the header is longer than the file, is no JSON, or its tensors do not fill the file's bytes exactly,
            one behind the other; says which.
    """
    with open_plain(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("it is shorter than its header says")
        if length > MOST_HEADER:
            raise ValueError(f"header too large: {length:,} bytes")
        header = _parsed(opened.read(length))
    header.pop("__metadata__", None)
    places = {name: _placed(name, entry) for name, entry in header.items()}
    end = 0
    for name, (begin, stop, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != end:
            raise ValueError(f"the tensor {name[:80]!r} begins at byte {begin:,} of the tensors and not at {end:,}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors end at byte {end:,}, and it holds {size - 8 - length:,}")
    return {name: spec for name, (_, _, spec) in places.items()}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"its header is no JSON: {problem}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header


def _placed(name: str, entry: Any) -> tuple[int, int, TensorSpec]:
    """First byte of a tensor, the byte behind its last, and what it is."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name[:80]!r} is not that of a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{name[:80]!r} is of the type {str(dtype)[:20]!r}, which is not read")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the place of {name[:80]!r} is none")
    begin, stop = offsets
    if stop - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name[:80]!r} has {stop - begin:,} bytes, which is not what its shape takes")
    return begin, stop, TensorSpec(dtype, tuple(shape))


def _whole_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63 for number in value)
    )


class Entry(NamedTuple):
    """What lies in a folder under one name."""

    name: str
    kind: Literal["file", "folder", "other"]
    """What the entry is when links are followed; `other` is a device, a pipe, a socket, or a link to nothing."""
    size: int
    """Bytes of a file; 0 for all else."""
    link: bool


def listing(folder: Path) -> list[Entry]:
    """List a folder, in no order.

    Raises:
        OSError: the folder cannot be read.
    """
    entries = []
    if isinstance(folder, os.PathLike):
        with os.scandir(folder) as there:
            for item in there:
                if item.is_file():
                    entries.append(Entry(item.name, "file", item.stat().st_size, item.is_symlink()))
                else:
                    entries.append(Entry(item.name, "folder" if item.is_dir() else "other", 0, item.is_symlink()))
        return entries
    for path in folder.iterdir():  # a remote folder has no links
        is_file = path.is_file()
        kind: Literal["file", "folder"] = "file" if is_file else "folder"
        entries.append(Entry(path.name, kind, path.stat().st_size if is_file else 0, False))
    return entries


def files_below(folder: Path) -> Iterator[str]:
    """Yield the path, relative to the folder, of every file below it; links to folders are not followed."""
    if isinstance(folder, os.PathLike):
        for place, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                yield os.path.relpath(os.path.join(place, name), folder)
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def first_bytes(file: Path, size: int) -> bytes:
    """Return the beginning of a file; nothing where the file cannot be read, which whoever needs it whole will say."""
    try:
        with open_plain(file) if isinstance(file, os.PathLike) else file.open("rb") as stream:
            return bytes(stream.read(size))
    except OSError:
        return b""
