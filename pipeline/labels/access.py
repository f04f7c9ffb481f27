"""Label stores as Zarr groups: from a folder, or read only from a URL; and nothing read that the store cannot hold.

A store may come from a stranger. So every file passes through a guard before Zarr decodes a byte of it: it is a plain
file inside the store's own folder, no larger than its array allows, and what its compression declares to hold is what
the layout says. This module does not know what a store holds: `header` says what its arrays must be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from teachonce.core.documents import json_in
from teachonce.core.files import is_remote
from teachonce.core.outside import read_plain, require_plain
from teachonce.errors import DataError
from teachonce.objects.remote import exists, read_bytes
from teachonce.objects.zarr_store import open_zarr
from teachonce.phrases import phrase

METADATA = "zarr.json"
HEADER_FILE = f"ledger/{METADATA}"
MOST_METADATA = 64 << 20  # bytes of a metadata file; a fingerprint with ten thousand templates has one
CHECKSUM = 4  # bytes of the CRC-32C behind each chunk
BLOSC_HEAD = 16  # bytes: versions and flags, then sizes as three words of 32 bits: decoded, block, coded


@dataclass(frozen=True)
class ChunkLimit:
    """What each chunk file of an array decodes to."""

    bytes: int
    packed: bool
    """Whether it is compressed with Blosc; else its bytes lie there as they are."""
    required: bool
    """Whether a missing file is a fault, and not a chunk that nobody has written yet."""


def open_group(path: Path, writable: bool) -> zarr.Group:
    """The root of a store.

    Raises:
        DataError: there is nothing at this path.
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError, ValueError, KeyError: it is no Zarr group.
    """
    if not exists(path):
        raise DataError(
            f"{path} does not exist",
            hint=phrase("teachonce teach MANIFEST {teacher} MODEL {labels}") + f" {path}"
            if not is_remote(path)
            else "look at the bucket and the path",
        )
    document_in(read_metadata(path, METADATA))
    # In a bucket nothing is written through Zarr, which knows no conditions.
    mode, store = ("r+" if writable and not is_remote(path) else "r"), _guarded(path, writable)
    # Consolidated metadata are a second copy of what the files of the arrays say, and nobody checks that they agree.
    return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)  # type: ignore[arg-type]


def _guarded(path: Path, writable: bool) -> Store:
    if is_remote(path):
        return _Guarded(open_zarr(path))
    return _Local(LocalStore(path, read_only=not writable))


def allow(root: zarr.Group, limits: Mapping[str, ChunkLimit]) -> None:
    """Let the chunks of these arrays be read, by path; a chunk of any other array is refused."""
    store: Any = root.store
    store.limits.update(limits)


def read_metadata(path: Path, name: str) -> bytes:
    """A metadata file of a store.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it is no plain file in the store's folder, or too large for metadata.
        EnvironmentFault: it is remote, and the network or a permission is missing.
    """
    if not is_remote(path):
        return read_plain(path / name, MOST_METADATA, inside=path)
    data = read_bytes(path / name)
    if data is None:
        raise FileNotFoundError(f"{path / name} does not exist")
    return data


def document_in(metadata: bytes) -> dict[str, Any]:
    """The table in a metadata file.

    Raises:
        ValueError: it is no JSON object.
    """
    document = json_in(metadata, MOST_METADATA)
    if not isinstance(document, dict):
        raise ValueError("it holds no table")
    return document


class _Guarded(WrapperStore[Store]):
    """A Zarr store whose chunks are compared with what they may hold before they are decoded."""

    def __init__(self, store: Store, limits: dict[str, ChunkLimit] | None = None) -> None:
        super().__init__(store)
        self.limits = {} if limits is None else limits
        self.counted: dict[str, int] = {}
        self.arrays: dict[str, zarr.Array[Any]] = {}

    def _with_store(self, store: Store) -> _Guarded:
        return type(self)(store, self.limits)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        limit = self._limit(key)
        self._require_size(key, MOST_METADATA if limit is None else limit.bytes + BLOSC_HEAD + CHECKSUM)
        buffer = await super().get(key, prototype, byte_range)
        if limit is not None:
            _require_declared(key, limit, buffer)
        return buffer

    def _limit(self, key: str) -> ChunkLimit | None:
        """What the chunk of this key may hold; None for metadata."""
        array, chunk, _ = key.partition("/c/")
        if not chunk:
            return None
        if array not in self.limits:
            raise ValueError(f"{key} belongs to no array of this store")
        return self.limits[array]

    def _require_size(self, key: str, most: int) -> None:
        """Refuse a file that is too large to be read, where asking for its size costs nothing."""


class _Local(_Guarded):
    """The store in a folder."""

    def _require_size(self, key: str, most: int) -> None:
        store: Any = self._store
        try:
            size = require_plain(store.root / key, inside=store.root)
        except (FileNotFoundError, NotADirectoryError):
            return
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than the {most:,} that it can have")


def _require_declared(key: str, limit: ChunkLimit, buffer: Buffer | None) -> None:
    """Refuse a chunk whose own head says that it decodes to another number of bytes than its array's chunks have."""
    if buffer is None:
        if limit.required:
            raise FileNotFoundError(f"{key} is missing")
        return
    data: Any = buffer.as_numpy_array()
    if not limit.packed:
        declared = len(data) - CHECKSUM
    elif len(data) < BLOSC_HEAD + CHECKSUM:
        raise ValueError(f"{len(data)} bytes are too few for a chunk")
    else:
        declared, _, coded = (int(word) for word in data[4:BLOSC_HEAD].view("<u4"))
        if coded != len(data) - CHECKSUM:
            raise ValueError(f"it says that it has {coded:,} bytes, and has {len(data) - CHECKSUM:,}")
    if declared != limit.bytes:
        raise ValueError(f"it decodes to {declared:,} bytes, where a chunk has {limit.bytes:,}")


def array_of(root: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of an open store by its path; its metadata are read once, since Zarr hands each reading to a thread.

    Raises:
        KeyError: there is none.
        OSError, ValueError: its metadata cannot be read.
    """
    store: Any = root.store
    arrays: dict[str, zarr.Array[Any]] = store.arrays if isinstance(store, _Guarded) else {}
    if name not in arrays:
        array: Any = root[name]
        if not isinstance(array, zarr.Array):
            raise ValueError(f"{name} is a folder of arrays, and no array")
        arrays[name] = array
    return arrays[name]


def chunk_files(root: zarr.Group, path: Path, name: str) -> int:
    """How many files, or folders of files, of chunks an array has, counted along its first axis once for an open store.

    Args:
        root: of the store.
        path: of the store.
        name: path of the array below the store.
    """
    store: Any = root.store
    counted: dict[str, int] = store.counted if isinstance(store, _Guarded) else {}
    if name not in counted:
        folder = path / name / "c"
        names = os.scandir(folder) if not is_remote(path) and folder.is_dir() else ()
        counted[name] = sum(1 for _ in (folder.iterdir() if is_remote(path) and exists(folder) else names))
    return counted[name]


def whole_chunks(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array, writing chunks that equal the fill value too; Zarr would drop one in which every image failed.

    The setting is not stored with an array. `with_config` would say it, but came after Zarr 3.1.3.
    """
    metadata: Any = array.metadata  # of either format of Zarr
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path, config={"write_empty_chunks": True}))
