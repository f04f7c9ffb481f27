"""Label stores that are written in a bucket: chunks and records as bytes, and what the driver does with them.

What the bytes are is the same as in a folder, since Zarr makes them; only the way into the store is another one, and
`keeping.bucket` has it. Nothing here runs where the store lies in a folder.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import MemoryStore

from teachonce.errors import IntegrityError
from teachonce.keeping.bucket import BucketKeeper
from teachonce.keeping.claims import Claim, StagedFile
from teachonce.labels.access import HEADER_FILE, METADATA, read_metadata, whole_chunks
from teachonce.labels.format import chunk_key
from teachonce.labels.ledger import ledger_path
from teachonce.labels.store import Arrays, LabelStore

Digests = tuple[bytes, ...]


def encoded_chunk(store: LabelStore, group: str, chunk: int, data: Arrays) -> tuple[dict[str, bytes], Digests]:
    """The files of one chunk of one group, proved by decoding them again.

    Args:
        store: open; only what it says of itself is read.
        group: the column group.
        chunk: its number.
        data: every array of the group, keyed by path, [rows of the chunk, ...].

    Returns:
        The bytes of each file by its key below the store, and the digests that the record needs.

    Raises:
        IntegrityError: what was encoded decodes to something else.
    """
    files: dict[str, bytes] = {}
    digests = []
    for spec in store.groups[group].arrays:
        start, stop = spec.bounds(store.layout, chunk)
        array, held = _in_memory(store, spec.path)
        whole_chunks(array)[start:stop] = data[spec.path].astype(spec.dtype, copy=False)
        digest = store.digest_of(group, spec, chunk, data[spec.path])
        if store.digest_of(group, spec, chunk, np.asarray(array[start:stop])) != digest:
            raise IntegrityError(
                f"{store.path}: chunk {chunk} of {group} decodes to something else than was encoded",
                hint="the memory of this machine is faulty",
            )
        digests.append(digest)
        files[chunk_key(spec, chunk)] = held[chunk_key(spec, chunk)].to_bytes()
    return files, tuple(digests)


def _in_memory(store: LabelStore, name: str) -> tuple[zarr.Array[Any], dict[str, Any]]:
    """An empty array as the store has it, and the files that will be made of it, by key below the store."""
    held: dict[str, Any] = {}
    memory = MemoryStore(held)
    document = store.metadata.documents[f"{name}/{METADATA}"]
    buffer = zarr.core.buffer.default_buffer_prototype().buffer
    held[f"{name}/{METADATA}"] = buffer.from_bytes(json.dumps(document).encode())
    return zarr.open_array(memory, path=name, mode="r+", zarr_format=3), held


def hand_over(
    store: LabelStore, token: int, chunk: int, data: Mapping[str, Arrays]
) -> tuple[str, tuple[tuple[str, Digests], ...], tuple[tuple[str, tuple[StagedFile, ...]], ...]]:
    """Leave all groups of a chunk where the driver will find them.

    Returns:
        The name of what was left, each group's digests, and each group's files.

    Raises:
        IntegrityError: what arrived is not what was sent.
        EnvironmentFault: the server does not answer, or refuses.
    """
    coded = {group: encoded_chunk(store, group, chunk, arrays) for group, arrays in data.items()}
    every = {key: content for files, _ in coded.values() for key, content in files.items()}
    name, staged = BucketKeeper(store.path).hand_over(token, chunk, every)
    by_target = {file.target: file for file in staged}
    left = tuple((group, tuple(by_target[key] for key in files)) for group, (files, _) in coded.items())
    return name, tuple((group, digests) for group, (_, digests) in coded.items()), left


def enter(
    store: LabelStore, group: str, chunk: int, token: int, row: npt.NDArray[np.uint64], files: tuple[StagedFile, ...]
) -> bool:
    """Bring one group of a staged chunk into its place, and its record into the ledger.

    Args:
        store: open, owned by this run.
        group: the column group.
        chunk: its number.
        token: of the run.
        row: the record, as `ledger.to_row` makes it.
        files: what `hand_over` left of this group.

    Returns:
        Whether this delivery is in the ledger now; if not, another one is.

    Raises:
        IntegrityError: what was left is no longer there.
    """
    key = record_key(group, chunk)
    array, held = _in_memory(store, ledger_path(group))
    array[chunk : chunk + 1] = row[None]
    claim = Claim(
        group=group,
        chunk=chunk,
        fingerprint=store.groups[group].digest,
        by=f"{token:x} {secrets.token_hex(8)}",
        record_key=key,
        record=held[key].to_bytes().hex(),
        files=files,
    )
    return BucketKeeper(store.path).deliver(claim)


def record_key(group: str, chunk: int) -> str:
    """The path below a store of the file that holds the ledger's record of a chunk."""
    return f"{ledger_path(group)}/c/{chunk}/0"


def settle(store: LabelStore) -> int:
    """Finish what an earlier driver had begun to enter, and remove what workers had left of whole chunks.

    The caller owns the store.

    Returns:
        The number of chunks that were entered into the ledger.
    """

    def is_current(claim: Claim) -> bool:
        group = store.groups.get(claim.group)
        if group is None or group.digest != claim.fingerprint or not 0 <= claim.chunk < store.layout.chunks:
            return False
        targets = {chunk_key(spec, claim.chunk) for spec in group.arrays}
        fits = {file.target for file in claim.files} == targets
        return fits and claim.record_key == record_key(claim.group, claim.chunk)

    keeper = BucketKeeper(store.path)
    entered = keeper.settle(is_current)
    committed = [set(store.committed(group)) for group in store.groups]
    keeper.clear(lambda chunk: all(chunk in chunks for chunks in committed))
    return entered


class Skeleton:
    """The metadata files of a store in a folder of this machine, to which a column group is added.

    Use as a context manager; `send` brings what is new there into the store.
    """

    def __init__(self, store: LabelStore, files: Mapping[str, str]) -> None:
        self._store, self._files = store, files
        self._keeper = BucketKeeper(store.path)

    def __enter__(self) -> Skeleton:
        self._folder = TemporaryDirectory(prefix="teachonce-")
        self.path = Path(self._folder.name)
        header = self._keeper.read(HEADER_FILE)
        if header is None:
            raise IntegrityError(f"{self._store.path}/{HEADER_FILE} is gone")
        self._header = header.version
        for name in (*self._files, HEADER_FILE):
            data = header.data if name == HEADER_FILE else read_metadata(self._store.path, name)
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)
        self.root = zarr.open_group(str(self.path), mode="r+", zarr_format=3, use_consolidated=False)
        return self

    def __exit__(self, *problem: object) -> None:
        self._folder.cleanup()

    def send(self) -> None:
        """Send the new metadata files, and then the header, which makes them part of the store.

        Raises:
            IncompleteError: another process has changed the store.
        """
        for file in sorted(self.path.rglob(METADATA)):
            name = file.relative_to(self.path).as_posix()
            if name != HEADER_FILE and name not in self._files:
                self._keeper.write(name, file.read_bytes())
        self._keeper.replace(HEADER_FILE, (self.path / HEADER_FILE).read_bytes(), self._header)


__all__ = ["Digests", "Skeleton", "encoded_chunk", "enter", "hand_over", "record_key", "settle"]
