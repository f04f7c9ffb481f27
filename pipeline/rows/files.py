"""Working sets as files: where they lie, how they are written whole, proved, shared between processes and thrown away.

It does not know what is in them; `build` fills them and `working_set` reads them.

    labels.zarr.working/<digest>/about.json      identity, counts, size and CRC-32C of every file; its own check
    labels.zarr.working/<digest>/*.npy           the arrays
    labels.zarr.working/<digest>.lock            held by the one process that builds the set
    labels.zarr.working/<digest>.building-<pid>  a set that is not whole yet

Who reads a set holds a shared lock on its about.json, so that nobody clears it away meanwhile.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.documents import json_in
from teachonce.core.files import is_remote, neighbour, whole_folder
from teachonce.core.locks import exclusive, shared
from teachonce.core.machine import cache_folder
from teachonce.core.outside import read_plain, require_plain
from teachonce.core.progress import Reporter
from teachonce.errors import EnvironmentFault, IntegrityError, TeachOnceError

ABOUT = "about.json"
KIND = "teachonce-working-set"
SCHEMA = 1
MOST_ABOUT = 16 << 20  # bytes of it
BLOCK_BYTES = 1 << 22  # read at once for a checksum


@dataclass(frozen=True, eq=False)
class OpenFiles:
    """A proved set, which nobody clears away before `close` is called."""

    place: Path
    description: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    """By file name, mapped into memory, read only."""
    close: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """A set on disk, or what an interrupted build left (`rows` is None)."""

    place: Path
    store: str
    """Name of the label store it was made from."""
    bytes: int
    rows: int | None
    created: str
    in_use: bool


def folder_beside(store: Path) -> Path:
    """Where the working sets of a store lie; in the cache folder where the store is a URL."""
    if is_remote(store):
        return folder_in_cache()
    return neighbour(store, ".working")


def folder_in_cache(instead: Path | None = None) -> Path:
    """Where they lie when nothing can be written beside the store.

    Args:
        instead: the answer for a user who has no cache folder.

    Raises:
        EnvironmentFault: the user has none, and there is no `instead`.
    """
    try:
        return cache_folder() / "working"
    except EnvironmentFault:
        if instead is None:
            raise
        return instead


def set_digest(identity: Mapping[str, Any]) -> str:
    """The name of a set: equal only where the rows, columns and values are."""
    return canonical_digest(identity, MIDDLE)


class ArrayWriter:
    """A .npy file that grows by rows, written as a stream: a full disk is an error here, and not a dead process."""

    def __init__(self, file: Path, dtype: np.dtype[Any], tail: tuple[int, ...] = ()) -> None:
        self.path = file
        self.rows = 0
        self._dtype, self._tail = dtype, tail
        self._file = open(file, "wb", buffering=0)  # noqa: SIM115 - `close` closes it
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Write rows [R, *tail] behind those that are there."""
        data = memoryview(np.ascontiguousarray(rows, self._dtype).view(np.uint8).reshape(-1).data)
        while len(data):  # a raw file may take a part only
            data = data[self._file.write(data) :]
        self.rows += len(rows)

    def finish(self) -> None:
        """Enter the number of rows into the header; NumPy leaves room for it to grow in place."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._start:
            raise TeachOnceError(f"{self.path}: the header of a .npy file grew over its first row")
        self.close()

    def close(self) -> None:
        """Close the file, whole or not."""
        self._file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self.rows, *self._tail),
            },
        )


def open_files(folder: Path, digest: str) -> OpenFiles | None:
    """Open a set, with every byte of it compared with its checksum; None if there is none.

    One sequential read, which also brings the set into the page cache.

    Raises:
        IntegrityError: it is damaged; says what is.
    """
    place = folder / digest
    with ExitStack() as stack:
        if stack.enter_context(shared(place / ABOUT)) is None:
            if place.exists():
                raise IntegrityError(f"{place / ABOUT} is missing")
            return None
        try:
            description = _read_about(place, digest)
            arrays = {name: _open_array(place / name, file_facts) for name, file_facts in description["files"].items()}
        except OSError as problem:
            raise IntegrityError(f"{problem.filename or place}: {problem.strerror or problem}") from problem
        return OpenFiles(place, description, arrays, stack.pop_all().close)


@contextmanager
def building(folder: Path, digest: str, reporter: Reporter) -> Iterator[None]:
    """Be the only one who builds this set; waits for another process that does, and clears away what dead ones left.

    Raises:
        OSError: nothing can be written in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.lock"
    with ExitStack() as stack:
        if stack.enter_context(exclusive(path, wait=False, create=True)) is None:
            reporter.note("another process is making this working set: waiting for it")
            stack.enter_context(exclusive(path, create=True))
        for leftover in folder.glob(f"{digest}.*-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def draft(folder: Path, digest: str) -> AbstractContextManager[Path]:
    """A folder for the arrays of a new set and its description; inside `building`. Behind the block it is the set.

    Raises:
        OSError: it cannot be written.
    """
    return whole_folder(folder / digest, folder / f"{digest}.building-{os.getpid()}", last=discard)


def describe(place: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write what a finished draft is the set of, and what its files are.

    Args:
        place: the draft, which holds the arrays.
        identity: what the set's name is the digest of.
        facts: whatever else about.json should say.
    """
    files = {}
    for file in sorted(place.iterdir()):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        files[file.name] = {
            "dtype": np.lib.format.dtype_to_descr(array.dtype),
            "shape": array.shape,
            "bytes": file.stat().st_size,
            "crc32c": _crc(file),
        }
    description: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "identity": dict(identity),
        "files": files,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
    }
    description = json.loads(json.dumps(description))  # as a reader sees it: tuples are lists
    description["check"] = canonical_digest(description)
    (place / ABOUT).write_bytes(_about_bytes(description))


def discard(place: Path) -> None:
    """Throw a set away; who has it open keeps the bytes until the end."""
    gone = place.with_name(f"{place.name}.dropped-{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(place, gone)
        shutil.rmtree(gone, ignore_errors=True)


def stored_sets(folder: Path) -> list[StoredSet]:
    """The sets of a folder and what interrupted builds left there."""
    if not folder.is_dir():
        return []
    return [_describe(place) for place in sorted(folder.iterdir()) if place.is_dir() and len(_name(place)) == 32]


def clear(place: Path) -> bool:
    """Throw a set, or what a build left, away, unless a process reads or builds it; returns whether it went."""
    build_file = place.with_name(f"{_name(place)}.lock")
    with exclusive(build_file, wait=False, create=True) as builder:
        if builder is None:
            return False
        with exclusive(place / ABOUT, wait=False) as reader:  # keeps new readers out until it is gone
            if reader is None and (place / ABOUT).exists():
                return False
            discard(place)
        build_file.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: other sets lie there
        place.parent.rmdir()
    return True


def clear_locks(folder: Path) -> None:
    """Remove lock files of sets that are gone, which a killed `clear` leaves, and the folder if nothing is in it."""
    for file in folder.glob("*.lock"):
        with exclusive(file, wait=False) as builder:
            if builder is not None and not file.with_suffix("").exists():
                file.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def _busy(place: Path) -> bool:
    """Whether a process reads the set, or builds it where it is no set yet."""
    whole = place.name == _name(place)
    path = place / ABOUT if whole else place.with_name(f"{_name(place)}.lock")
    if not path.exists():
        return False
    with exclusive(path, wait=False) as lock:
        return lock is None


def _name(place: Path) -> str:
    return place.name.partition(".")[0]


def _describe(place: Path) -> StoredSet:
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(place.stat().st_mtime))
    rows, store = None, ""
    with suppress(IntegrityError, OSError):
        description = _read_about(place, place.name)
        rows, store, created = int(description["rows"]), str(description["store"]), str(description["created"])
    return StoredSet(place=place, store=store, bytes=size, rows=rows, created=created, in_use=_busy(place))


def _about_bytes(description: Mapping[str, Any]) -> bytes:
    return (json.dumps(description, indent=1, sort_keys=True) + "\n").encode()


def _read_about(place: Path, digest: str) -> dict[str, Any]:
    raw = read_plain(place / ABOUT, MOST_ABOUT)
    try:
        description = json_in(raw)
    except ValueError as problem:
        raise IntegrityError(f"{place / ABOUT} is damaged: {problem}") from problem
    sound = isinstance(description, dict) and _about_bytes(description) == raw
    if not sound or canonical_digest({k: v for k, v in description.items() if k != "check"}) != description.get(
        "check"
    ):
        raise IntegrityError(f"{place / ABOUT} is damaged: it is not what was written")
    if description["kind"] != KIND or description["schema"] != SCHEMA or set_digest(description["identity"]) != digest:
        raise IntegrityError(f"{place} is another working set than its name says")
    return dict(description)


def _open_array(file: Path, file_facts: Mapping[str, Any]) -> npt.NDArray[Any]:
    size_here = require_plain(file)
    if size_here != file_facts["bytes"]:
        raise IntegrityError(f"{file}: expected {file_facts['bytes']} bytes, found {size_here}")
    crc = _crc(file)
    if crc != file_facts["crc32c"]:
        raise IntegrityError(f"{file}: expected CRC-32C {file_facts['crc32c']}, found {crc}")
    with open(file, "rb") as opened:
        np.lib.format.read_magic(opened)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        start = opened.tell()
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)  # of a set larger than memory a batch reads its rows, not what surrounds them
    return np.frombuffer(mapped, dtype, count=shape[0] * int(np.prod(shape[1:])), offset=start).reshape(shape)


def _crc(file: Path) -> str:
    crc = 0
    with open(file, "rb", buffering=0) as opened:
        while block := opened.read(BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
    return f"{crc:08x}"
