"""A bucket as a store that Zarr reads: patient, and a refusal is not taken for a missing file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from teachonce.objects.clients import client, server
from teachonce.objects.faults import explained, may_pass
from teachonce.objects.paths import RemotePath
from teachonce.objects.patience import again_async

T = TypeVar("T")


def open_zarr(path: Path) -> ObjectStore[Any]:
    """A Zarr store of what lies below a URL; it is only read.

    Raises:
        EnvironmentFault: no credentials, or settings of the environment that fit no server.
    """
    return _Patient(cast(RemotePath, path))


class _Patient(ObjectStore[Any]):
    """Zarr's store for obstore, whose requests are repeated through outages."""

    def __init__(self, path: RemotePath) -> None:
        super().__init__(client(path.scheme, path.bucket, path.key), read_only=True)
        self._path = path

    def with_read_only(self, read_only: bool = False) -> _Patient:
        """The same store."""
        self._require_read_only(read_only)
        return _Patient(self._path)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The object of a key; None where there is none."""
        fetch = super().get
        return await self._again(key, lambda: fetch(key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """Whether there is an object of a key."""
        ask = super().exists
        return await self._again(key, lambda: ask(key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """The names in a folder."""
        ask = super().list_dir

        async def names() -> list[str]:
            return [name async for name in ask(prefix)]

        for name in await self._again(prefix, names):
            yield name

    async def _again(self, key: str, request: Callable[[], Awaitable[T]]) -> T:
        try:
            return await again_async(request, server(self._path.scheme, self._path.bucket), may_pass)
        except Exception as problem:
            if isinstance(problem, ValueError | TypeError):
                raise  # of Zarr, and no answer of a server
            raise explained(problem, f"{self._path}/{key}") from problem

    def _require_read_only(self, read_only: bool) -> None:
        if not read_only:
            raise ValueError(f"{self._path} is only read")
