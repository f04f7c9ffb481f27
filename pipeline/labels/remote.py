"""Label stores as Zarr groups: from a folder, or read only from a URL.

This module does not know what a store holds: `store` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from teachonce.core.remote import exists, explained, failures, is_remote, refuse_writes
from teachonce.errors import DataError
from teachonce.phrases import phrase


def open_group(path: Path, writable: bool) -> zarr.Group:
    """The root of a store.

    Raises:
        DataError: there is nothing at this path.
        UsageError: it is remote and is to be written.
        EnvironmentFault: it is remote, and the network or a permission is missing.
        OSError, ValueError, KeyError: it is no Zarr group.
    """
    if writable:
        refuse_writes(path)
    if not exists(path):
        raise DataError(
            f"{path} does not exist",
            hint=phrase("teachonce teach MANIFEST {teacher} MODEL {labels}") + f" {path}"
            if not is_remote(path)
            else "look at the bucket and the path",
        )
    if not is_remote(path):
        return zarr.open_group(str(path), mode="r+" if writable else "r", zarr_format=3)
    return zarr.open_group(_Remote(FsspecStore.from_url(str(path), read_only=True)), mode="r", zarr_format=3)


class _Remote(WrapperStore[FsspecStore]):
    """Zarr's remote store, in which a refusal by the network or by a permission is not taken for a missing file."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            return await super().get(key, prototype, byte_range)
        except failures() as problem:
            raise explained(problem, self._name(key)) from problem

    async def exists(self, key: str) -> bool:
        try:
            return await super().exists(key)
        except failures() as problem:
            raise explained(problem, self._name(key)) from problem

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        try:
            async for name in super().list_dir(prefix):
                yield name
        except failures() as problem:
            raise explained(problem, self._name(prefix)) from problem

    def _name(self, key: str) -> str:
        store: Any = self._store
        return f"{store.fs.protocol[0]}://{store.path}/{key}"
